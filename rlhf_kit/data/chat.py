"""Dialogue as token ids: the only place where the text of a prompt or a completion is encoded.

Prompt and completion are always encoded apart, so the border between them is the same token border in training, in
sampling and in scoring. Where the tokenizer's own call begins a text with BOS, so does every text here, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.refusals import TemplateRefusal
from rlhf_kit.errors import UserError

Message = dict[str, str]
IGNORED = -100  # the label torch's cross entropy leaves out

# Plain text, no new tokens: GPT-2's embedding is never resized. The space stands with the completion ("Assistant:" +
# " Paris"), as byte-level BPE wants it: a prompt that ends in a space is a different token sequence.
GPT2_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'Assistant:' -}}"
    "{%- generation -%}{{- ' ' + (message['content'] | trim) + eos_token -}}{%- endgeneration -%}"
    "{%- elif message['role'] == 'system' -%}"
    "{{- 'System: ' + (message['content'] | trim) + eos_token -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- 'User: ' + (message['content'] | trim) + eos_token -}}"
    "{%- else -%}"
    "{{- raise_exception('a turn is of system, user or assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
BOS = "{{ bos_token }}"  # before a template that leaves it out
_NAMES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
# Characters of Unicode's supplementary private use area stand in for the text of special tokens.
_PRIVATE = 0xF0000
_PROBE = "\U000f8000"


@dataclass(frozen=True)
class Frame:
    """What a template puts around a completion: `lead` (text) before it, `after` (text) behind it.

    Args:
        end: the ids that end the turn; the last of them is what a policy ends with.
        written: the template writes that end itself; else it has none, and EOS is put in its place.
    """

    lead: str
    after: str
    end: list[int]
    written: bool = True


# --- what a text begins and ends with -------------------------------------------------------------------------------


def set_chat_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give `tokenizer` the plain-text template if it has none, and BOS to one that leaves it out. Returns it.

    Both are then saved with the tokenizer, so that plain transformers reads what was trained.
    """
    if not tokenizer.chat_template:
        _eos(tokenizer)
        tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    if isinstance(tokenizer.chat_template, str) and start_ids(tokenizer):
        question = _render(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
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
    """The last `size` tokens of `ids` (None: all), behind the `start` that they begin with.

    >>> last_tokens([1, 5, 6, 7], 3, [1])
    [1, 6, 7]
    """
    if size is None or len(ids) <= size:
        return ids
    kept = len(start) if ids[: len(start)] == list(start) else 0
    return ids[:kept] + ids[len(ids) - max(size - kept, 0) :]


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion by the tokenizer: its end of text, and its chat template's end of a turn."""
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        with suppress(TemplateRefusal):  # which asks nobody in turns
            ends += _frame(tokenizer).end[-1:]
    return list(dict.fromkeys(end for end in ends if end is not None))


# --- texts and dialogues --------------------------------------------------------------------------------------------


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch: int = 1000) -> Iterator[list[int]]:
    """Ids of plain texts, begun and not ended; empty ones are left out."""
    start = start_ids(tokenizer)
    for at in range(0, len(texts), batch):
        # Text is data: an end-of-text mark typed inside a document does not end it.
        part = list(texts[at : at + batch])
        encoded = tokenizer(part, add_special_tokens=False, split_special_tokens=True, verbose=False)
        yield from (start + ids for ids in encoded["input_ids"] if ids)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> list[int]:
    """Token ids up to where the assistant speaks. A str is one user turn under a chat template, else verbatim.

    Raises:
        TemplateRefusal: where the chat template does not take the prompt.
    """
    if isinstance(prompt, str):
        if not tokenizer.chat_template:
            return start_ids(tokenizer) + _text_ids(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    _need_template(tokenizer)
    if _is_ours(tokenizer):
        turns = [i for message in prompt for i in _turn_ids(tokenizer, message)]
        return start_ids(tokenizer) + turns + _text_ids(tokenizer, "Assistant:")
    prompt, shielded = _shield(tokenizer, prompt)
    return begun(tokenizer, _rendered_ids(tokenizer, _render(tokenizer, prompt, add_generation_prompt=True), shielded))


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str, eos: bool) -> list[int]:
    """Token ids of what the assistant says, ended as its turn ends if `eos`.

    Under a chat template surrounding whitespace is stripped and the template's own lead (ours: one space; Qwen3: an
    empty thought) put before it, unless it has one already, so that `encode_prompt` + `encode_completion` are the ids
    of the dialogue; without one the text is verbatim.
    """
    if not tokenizer.chat_template:
        return _text_ids(tokenizer, completion) + ([_eos(tokenizer)] if eos else [])
    frame = _frame(tokenizer)
    end = frame.end if eos else []
    if _is_ours(tokenizer):
        return _text_ids(tokenizer, frame.lead + completion.strip()) + end
    messages, shielded = _shield(tokenizer, [{"role": "assistant", "content": completion}])
    return _rendered_ids(tokenizer, _led(tokenizer, messages[0]["content"], frame), shielded) + end


def encode_dialogue(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """(input_ids, labels), equally long: every assistant turn and its end is trained, all else is -100.

    A template that writes no end gets EOS behind the last answer, as `encode_completion` puts it.

    Raises:
        TemplateRefusal: where the template does not take the dialogue.
        UserError: for a foreign template that neither marks the assistant's words (`{% generation %}`) nor renders a
            dialogue's beginning the same whatever follows.
    """
    _need_template(tokenizer)
    if _is_ours(tokenizer):
        ids, labels = [], []
        for message in messages:
            turn = _turn_ids(tokenizer, message)
            said = 0
            if message["role"] == "assistant":
                said = len(turn) - len(_text_ids(tokenizer, "Assistant:"))
            ids += turn
            labels += [IGNORED] * (len(turn) - said) + turn[len(turn) - said :]
    else:
        messages, shielded = _shield(tokenizer, messages)
        if not shielded and re.search(r"\{%-?\s*generation\s*-?%\}", _template(tokenizer)):
            ids, labels = _encode_marked(tokenizer, messages)
        else:
            ids, labels = _encode_incrementally(tokenizer, messages, shielded)
    ids = begun(tokenizer, ids)
    return ids, [IGNORED] * (len(ids) - len(labels)) + labels


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of a completion's ids up to its end (not included), without the template's lead and whitespace around."""
    ends = turn_ends(tokenizer)
    ids = [int(i) for i in ids]
    stop = next((at for at, i in enumerate(ids) if i in ends), len(ids))
    text = tokenizer.decode(ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    return _without_lead(tokenizer, text) if tokenizer.chat_template else text


# --- the parts ------------------------------------------------------------------------------------------------------


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()  # of several the one that serves
    except ValueError as error:
        raise TemplateRefusal(str(error)) from error


def _is_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template in (GPT2_CHAT_TEMPLATE, BOS + GPT2_CHAT_TEMPLATE)


def _need_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise UserError("The prompt is a list of messages but the tokenizer has no chat template: set_chat_template.")


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no EOS token, so no turn can end. Set tokenizer.eos_token.")
    return tokenizer.eos_token_id


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Data is text: "<|endoftext|>" typed by somebody must not end a turn.
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def _turn_ids(tokenizer: PreTrainedTokenizerBase, message: Message) -> list[int]:
    """One turn of our own template, EOS included."""
    role = message["role"]
    if role not in _NAMES:
        raise TemplateRefusal(f"a turn has the role {role!r}; it must be one of {', '.join(_NAMES)}")
    content = " " + message["content"].strip()
    if role == "assistant":
        return _text_ids(tokenizer, _NAMES[role]) + _text_ids(tokenizer, content) + [_eos(tokenizer)]
    return _text_ids(tokenizer, _NAMES[role] + content) + [_eos(tokenizer)]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = False, **options
):
    """A dialogue as its template has it, as text unless `options` say otherwise."""
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt} | options
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:  # a template is a program of somebody's
        words = str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
        raise TemplateRefusal(words, _system_advice(tokenizer, messages)) from error


def _system_advice(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """What to do where the system turn alone is what the template refuses."""
    others = [message for message in messages if message["role"] != "system"]
    if len(others) == len(messages):
        return ""
    try:
        tokenizer.apply_chat_template(others, tokenize=False)
    except Exception:
        return ""
    return "It takes no system turn: put the system text at the beginning of the first user turn."


@dataclass(frozen=True)
class _Specials:
    """Tokens that text never makes: the named ones, and what was added as special (Llama 3's <|eot_id|>)."""

    ids: frozenset[int]
    marks: frozenset[int]  # and all else that was added, white space left out: some turn's end is not called special
    places: dict[str, int]  # the text of each special token, numbered
    pattern: re.Pattern  # finds any of these texts, the longest first


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> _Specials:
    return _specials(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@lru_cache(maxsize=16)  # Gemma has 6,000 added tokens, too many to list for every message
def _specials(tokenizer: PreTrainedTokenizerBase, size: int, named: tuple[str, ...]) -> _Specials:
    added = tokenizer.added_tokens_decoder
    special = {i: token.content for i, token in added.items() if token.special}
    special |= dict(zip(tokenizer.convert_tokens_to_ids(list(named)), named, strict=True))
    texts = sorted(set(special.values()), key=len, reverse=True)
    return _Specials(
        frozenset(special),
        frozenset(i for i, token in added.items() if token.content.strip()),
        {text: place for place, text in enumerate(texts)},
        re.compile("|".join(map(re.escape, texts)) or r"(?!)"),
    )


def _shield(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """`messages` with answers bare and the text of special tokens as private characters; what each stands for."""
    tokens = _special_tokens(tokenizer)
    shielded: dict[str, str] = {}

    def stand_in(found: re.Match) -> str:
        character = chr(_PRIVATE + tokens.places[found[0]])
        shielded[character] = found[0]
        return character

    safe = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            content = _without_lead(tokenizer, content.strip())  # as encode_completion does, so that the two agree
        safe.append({**message, "content": tokens.pattern.sub(stand_in, content)})
    return safe, shielded


def _rendered_ids(tokenizer: PreTrainedTokenizerBase, text: str, shielded: dict[str, str]) -> list[int]:
    """Ids of a rendered template: its special tokens are special, those that stood in a content are text."""
    pieces = re.split(f"([{''.join(shielded)}])", text) if shielded else [text]
    ids: list[int] = []
    for piece in pieces:
        if piece in shielded:
            ids += _text_ids(tokenizer, shielded[piece])
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What the template puts between the generation prompt and a completion, and behind it."""
    return _frame_of(tokenizer, _template(tokenizer), tokenizer.eos_token_id, len(tokenizer))


@lru_cache(maxsize=16)
def _frame_of(tokenizer: PreTrainedTokenizerBase, template: str, eos: int | None, size: int) -> Frame:
    if _is_ours(tokenizer):
        return Frame(" ", "", [_eos(tokenizer)])
    question = [{"role": "user", "content": "?"}]
    prefix = _render(tokenizer, question, add_generation_prompt=True)
    full = _render(tokenizer, [*question, {"role": "assistant", "content": _PROBE}])
    before, probe, after = full.partition(_PROBE)
    if not probe:
        return Frame("", "", [_eos(tokenizer)], written=False)
    end = _turn_end(tokenizer, after)
    lead = before.removeprefix(prefix) if before.startswith(prefix) else ""
    return Frame(lead, after, end or [_eos(tokenizer)], written=bool(end))


def lead_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a template not ours puts before every answer, such as an empty thought; none where it is white space."""
    if not tokenizer.chat_template or _is_ours(tokenizer):
        return []
    lead = _frame(tokenizer).lead
    return _rendered_ids(tokenizer, lead, {}) if lead.strip() else []


def _without_lead(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A completion without the lead that its template writes anyway, whatever white space the lead has in it."""
    lead = "".join(_frame(tokenizer).lead.split())
    return re.sub(r"\A" + r"\s*".join(map(re.escape, lead)), "", text).strip() if lead else text


def _led(tokenizer: PreTrainedTokenizerBase, completion: str, frame: Frame) -> str:
    """A completion with the template's lead; as the template renders it where it knows a lead in it (a thought)."""
    if frame.lead.strip():
        question = [{"role": "user", "content": "?"}]
        prefix = _render(tokenizer, question, add_generation_prompt=True)
        full = _render(tokenizer, [*question, {"role": "assistant", "content": completion}])
        said = full.removeprefix(prefix).removesuffix(frame.after)
        if "".join(said.split()) == "".join(completion.split()):
            return said
    return frame.lead + completion


def _turn_end(tokenizer: PreTrainedTokenizerBase, after: str) -> list[int]:
    """Ids from the end of the content to the first token that no text makes: the newline many templates add behind is
    not said. [] without one."""
    ids, specials = _rendered_ids(tokenizer, after, {}), _special_tokens(tokenizer)
    for ends in (specials.ids, specials.marks):
        at = next((at for at, i in enumerate(ids) if i in ends), None)
        if at is not None:
            return ids[: at + 1]
    return []


def _encode_marked(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """By the template's own marks of what the assistant says; the end of its turn belongs to it."""
    encoded = _render(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, said, frame = list(encoded["input_ids"]), list(encoded["assistant_masks"]), _frame(tokenizer)
    for at in [at for at in range(1, len(ids)) if said[at - 1] and not said[at]]:
        if ids[at : at + len(frame.end)] == frame.end:
            said[at : at + len(frame.end)] = [1] * len(frame.end)
    if not frame.written and messages[-1]["role"] == "assistant" and any(said):
        last = len(said) - said[::-1].index(1)
        ids, said = [*ids[:last], *frame.end], [*said[:last], 1]
    return ids, [i if mask else IGNORED for i, mask in zip(ids, said, strict=True)]


def _encode_incrementally(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], shielded: dict[str, str]
) -> tuple[list[int], list[int]]:
    full, frame = _render(tokenizer, messages), _frame(tokenizer)
    ends = _special_tokens(tokenizer).ids | {frame.end[-1]}
    ids: list[int] = []
    labels: list[int] = []
    done = 0
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:at], add_generation_prompt=True)
        until = _render(tokenizer, messages[: at + 1])
        if not (full.startswith(before) and full.startswith(until) and done <= len(before) <= len(until)):
            raise UserError(
                "The tokenizer's chat template renders the turns before an answer differently once the answer "
                "follows, so the assistant's words cannot be told apart. Mark them in it with {% generation %}."
            )
        asked = _rendered_ids(tokenizer, full[done : len(before)], shielded)
        answer = full[len(before) : len(until)]
        if at == len(messages) - 1 and not frame.written:
            said = _rendered_ids(tokenizer, answer.removesuffix(frame.after), shielded) + frame.end
        else:
            said = _rendered_ids(tokenizer, answer, shielded)
        last = max((i for i, token in enumerate(said) if token in ends), default=len(said) - 1)
        ids += asked + said
        labels += [IGNORED] * len(asked) + said[: last + 1] + [IGNORED] * (len(said) - last - 1)
        done = len(until)
    rest = _rendered_ids(tokenizer, full[done:], shielded)
    return ids + rest, labels + [IGNORED] * len(rest)
