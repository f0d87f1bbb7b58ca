"""Dialogue as token ids, and a template for tokenizers without one: all prompts and completions are encoded here.

Prompt and completion are always encoded apart, so the border between them is the same token border in training, in
sampling and in scoring; each as it stands behind what is before it (`templates.text_ids`), as the whole text has it.
Where the tokenizer's own call begins a text with BOS, so does every text here, once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.messages import Message, is_learnt
from rlhf_kit.data.refusals import TemplateRefusal, UnstableTemplate, refused_rows
from rlhf_kit.data.templates import (
    BOS,
    GPT2_CHAT_TEMPLATE,
    SOME_TEXT,
    Tools,
    eos_id,
    frame_of,
    has_ours,
    is_ours,
    led,
    refuse_dropped,
    refuse_unread,
    render,
    rendered_ids,
    shield,
    special_tokens,
    template_of,
    text_ids,
    turn_ends,
    without_lead,
)
from rlhf_kit.data.workers import by_parts
from rlhf_kit.errors import UserError
from rlhf_kit.launched import is_main_process
from rlhf_kit.progress import Progress

IGNORED = -100  # the label torch's cross entropy leaves out

_NAMES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


# --- what a text begins and ends with -------------------------------------------------------------------------------


def set_chat_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give `tokenizer` the plain-text template if it has none, and BOS to one that leaves it out. Returns it.

    Both are then saved with the tokenizer, so that plain transformers reads what was trained.
    """
    if not tokenizer.chat_template:
        eos_id(tokenizer)
        tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    if isinstance(tokenizer.chat_template, str) and start_ids(tokenizer):
        question = render(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
        if not question.startswith(tokenizer.bos_token):
            tokenizer.chat_template = BOS + tokenizer.chat_template
    return tokenizer


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] where the tokenizer's own call puts it before a text (Llama, Gemma, Mistral); [] for GPT-2 and Qwen."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else []


def begun(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """`ids` with the tokenizer's `start_ids` in front, once."""
    start = start_ids(tokenizer)
    return ids if ids[: len(start)] == start else start + ids


def last_tokens(ids: list[int], size: int | None, start: Sequence[int]) -> list[int]:
    """The last `size` tokens of `ids` (None: all), after the `start` that they begin with.

    >>> last_tokens([1, 5, 6, 7], 3, [1])
    [1, 6, 7]
    """
    if size is None or len(ids) <= size:
        return ids
    kept = len(start) if ids[: len(start)] == list(start) else 0
    return ids[:kept] + ids[len(ids) - max(size - kept, 0) :]


# --- texts and dialogues --------------------------------------------------------------------------------------------


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], workers: int = 0) -> Iterator[list[int]]:
    """Ids of plain texts, begun and not ended; empty ones are left out. `workers`: of `data.workers`."""
    start = start_ids(tokenizer)

    def part(texts: Sequence[str]) -> list[list[int]]:
        # Text is data: an end-of-text mark typed inside a document does not end it.
        return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    with Progress(len(texts), "texts tokenized", shown=is_main_process()) as progress:
        for encoded in by_parts(part, texts, workers):
            yield from (start + ids for ids in encoded if ids)
            progress.add(len(encoded))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], unread: Counter[str] | None = None
) -> list[int]:
    """Token ids up to where the assistant speaks. A str is one user turn under a chat template, else verbatim.

    Args:
        unread: counts the fields of turns that the chat template does not write.

    Raises:
        TemplateRefusal: where the chat template does not take the prompt, or leaves out a turn or its calls.
    """
    if isinstance(prompt, str):
        if not tokenizer.chat_template:
            return start_ids(tokenizer) + text_ids(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    _need_template(tokenizer)
    refuse_unread(tokenizer, prompt, counts=unread)
    if is_ours(tokenizer):
        turns = [i for message in prompt for i in _turn_ids(tokenizer, message)]
        return start_ids(tokenizer) + turns + text_ids(tokenizer, "Assistant:")
    prompt, _, shielded = shield(tokenizer, prompt)
    text = render(tokenizer, prompt, add_generation_prompt=True)
    refuse_dropped(tokenizer, prompt, text)
    return begun(tokenizer, rendered_ids(tokenizer, text, shielded))


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str, eos: bool) -> list[int]:
    """Token ids of what the assistant says, ended as its turn ends if `eos`.

    Under a chat template surrounding whitespace is stripped and the template's own lead (ours: one space; Qwen3: an
    empty thought) put before it, unless it has one already, so that `encode_prompt` + `encode_completion` are the ids
    of the dialogue; without one the text is verbatim.
    """
    if not tokenizer.chat_template:
        return text_ids(tokenizer, completion, SOME_TEXT) + ([eos_id(tokenizer)] if eos else [])
    frame = frame_of(tokenizer)
    end = frame.end if eos else []
    if is_ours(tokenizer):
        return text_ids(tokenizer, frame.lead + completion.strip()) + end
    messages, _, shielded = shield(tokenizer, [{"role": "assistant", "content": completion}])
    return rendered_ids(tokenizer, led(tokenizer, messages[0]["content"], frame), shielded, frame.before) + end


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools = None,
    unread: Counter[str] | None = None,
) -> tuple[list[int], list[int]]:
    """(input_ids, labels), equally long: every assistant turn and its end is trained, all else is -100.

    A turn that says so (`weight` 0) is not trained. A template that writes no end gets EOS behind the last answer, as
    `encode_completion` puts it.

    Args:
        tools: JSON schemas of what the assistant may call, for the template.
        unread: as in `encode_prompt`.

    Raises:
        TemplateRefusal: where the template does not take the dialogue, or leaves out a turn, its calls or the tools.
        UnstableTemplate: where an answer to learn is written otherwise because others follow it; each is to be encoded
            with the turns before it alone.
    """
    _need_template(tokenizer)
    learnt = [is_learnt(message) for message in messages]
    refuse_unread(tokenizer, messages, tools, unread)
    if is_ours(tokenizer):
        ids, labels = [], []
        for message, learns in zip(messages, learnt, strict=True):
            turn = _turn_ids(tokenizer, message)
            learned = len(turn) - len(text_ids(tokenizer, "Assistant:")) if learns else 0
            ids += turn
            labels += [IGNORED] * (len(turn) - learned) + turn[len(turn) - learned :]
    else:
        messages, tools, shielded = shield(tokenizer, messages, tools)
        refuse_dropped(tokenizer, messages, render(tokenizer, messages, tools=tools), tools)
        marked = re.search(r"\{%-?\s*generation\s*-?%\}", template_of(tokenizer)) and not has_ours(tokenizer)
        if marked and not shielded:
            ids, labels = _encode_marked(tokenizer, messages, tools, learnt)
        else:
            ids, labels = _encode_incrementally(tokenizer, messages, tools, learnt, shielded)
    ids = begun(tokenizer, ids)
    return ids, [IGNORED] * (len(ids) - len(labels)) + labels


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of a completion's ids up to its end (not included), without the template's lead and whitespace around."""
    ends = turn_ends(tokenizer)
    ids = [int(i) for i in ids]
    stop = next((at for at, i in enumerate(ids) if i in ends), len(ids))
    text = tokenizer.decode(ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    return without_lead(tokenizer, text) if tokenizer.chat_template else text


def decode_behind(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` as it continues that of `before`, white space and all: alone some tokenizers drop the first."""
    options = dict(skip_special_tokens=True, clean_up_tokenization_spaces=False)
    start, whole = tokenizer.decode(before, **options), tokenizer.decode([*before, *ids], **options)
    return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(ids, **options)


def encode_each(rows: Iterable, encode: Callable, name: str = "", unread: Counter[str] | None = None) -> list:
    """`encode(row, unread)` of every row. Raises UserError, naming all rows (from 1) that the template refuses."""
    return list(encoding(list(rows), encode, name, unread))


def encoding(
    rows: Sequence, encode: Callable, name: str = "", unread: Counter[str] | None = None, workers: int = 0
) -> Iterator:
    """As `encode_each`, row by row; what is refused is told at the end. `workers`: of `data.workers`."""

    def part(rows: Sequence) -> tuple[list, Counter[str]]:
        counts: Counter[str] = Counter()
        return [_tried(encode, row, counts) for row in rows], counts

    refusals = {}
    with Progress(len(rows), "rows tokenized", shown=is_main_process()) as progress:
        for made, counts in by_parts(part, rows, workers):
            if unread is not None:
                unread.update(counts)
            for encoded in made:
                progress.add(1)
                if isinstance(encoded, TemplateRefusal):
                    refusals[progress.done] = encoded
                else:
                    yield encoded
    if refusals:
        raise refused_rows(refusals, len(rows), name)


def _tried(encode: Callable, row: Any, counts: Counter[str]) -> Any:
    try:
        return encode(row, counts)
    except TemplateRefusal as refusal:
        return refusal


# --- the parts ------------------------------------------------------------------------------------------------------


def _need_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise UserError("The prompt is a list of messages but the tokenizer has no chat template: set_chat_template.")


def _turn_ids(tokenizer: PreTrainedTokenizerBase, message: Message) -> list[int]:
    """One turn of our own template, EOS included."""
    role = message["role"]
    if role not in _NAMES:
        raise TemplateRefusal(f"a turn has the role {role!r}; it must be one of {', '.join(_NAMES)}")
    if message.get("content") is None:
        raise TemplateRefusal(f"a turn of the {role} has no `content`, the only field that this template renders")
    content = " " + message["content"].strip()
    if role == "assistant":
        return text_ids(tokenizer, _NAMES[role]) + text_ids(tokenizer, content) + [eos_id(tokenizer)]
    return text_ids(tokenizer, _NAMES[role] + content) + [eos_id(tokenizer)]


def lead_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a template not ours puts before every answer, such as an empty thought; none where it is white space."""
    if not tokenizer.chat_template or is_ours(tokenizer):
        return []
    frame = frame_of(tokenizer)
    return rendered_ids(tokenizer, frame.lead, {}, frame.before) if frame.lead.strip() else []


def _encode_marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools, learnt: list[bool]
) -> tuple[list[int], list[int]]:
    """By the template's own marks of what the assistant says; the end of its turn belongs to it."""
    options = dict(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    encoded = render(tokenizer, messages, tools=tools, **options)
    ids, marks, frame = list(encoded["input_ids"]), list(encoded["assistant_masks"]), frame_of(tokenizer)
    for at in [at for at in range(1, len(ids)) if marks[at - 1] and not marks[at]]:
        if ids[at : at + len(frame.end)] == frame.end:
            marks[at : at + len(frame.end)] = [1] * len(frame.end)
    answers = [learns for message, learns in zip(messages, learnt, strict=True) if message["role"] == "assistant"]
    if not all(answers):
        runs = [list(run) for _, run in groupby(marks)]
        if sum(run[0] for run in runs) != len(answers):  # not one stretch an answer: by what each answer adds
            return _encode_incrementally(tokenizer, messages, tools, learnt, {})
        of_answers = iter(answers)
        marks = [mark for run in runs for mark in (run if not run[0] or next(of_answers) else [0] * len(run))]
    if not frame.written and learnt[-1] and any(marks):
        last = len(marks) - marks[::-1].index(1)
        ids, marks = [*ids[:last], *frame.end], [*marks[:last], 1]
    return ids, [i if mask else IGNORED for i, mask in zip(ids, marks, strict=True)]


def _encode_incrementally(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools,
    learnt: list[bool],
    shielded: dict[str, str],
) -> tuple[list[int], list[int]]:
    full, frame = render(tokenizer, messages, tools=tools), frame_of(tokenizer)
    ends = special_tokens(tokenizer).ids | {frame.end[-1]}
    ids: list[int] = []
    labels: list[int] = []
    done = 0
    for at in [at for at, learns in enumerate(learnt) if learns]:
        before = render(tokenizer, messages[:at], add_generation_prompt=True, tools=tools)
        until = render(tokenizer, messages[: at + 1], tools=tools)
        if not (full.startswith(before) and full.startswith(until) and done <= len(before) <= len(until)):
            raise UnstableTemplate(
                "The tokenizer's chat template renders the turns before an answer differently once the answer "
                "follows, so the assistant's tokens cannot be identified. Mark them in it with {% generation %}."
            )
        context_ids = rendered_ids(tokenizer, full[done : len(before)], shielded, full[:done])
        answer = full[len(before) : len(until)]
        if at == len(messages) - 1 and not frame.written:
            answer_ids = rendered_ids(tokenizer, answer.removesuffix(frame.after), shielded, frame.before) + frame.end
        else:
            answer_ids = rendered_ids(tokenizer, answer, shielded, frame.before)
        last = max((i for i, token in enumerate(answer_ids) if token in ends), default=len(answer_ids) - 1)
        ids += context_ids + answer_ids
        labels += [IGNORED] * len(context_ids) + answer_ids[: last + 1] + [IGNORED] * (len(answer_ids) - last - 1)
        done = len(until)
    rest = rendered_ids(tokenizer, full[done:], shielded, full[:done])
    return ids + rest, labels + [IGNORED] * len(rest)
