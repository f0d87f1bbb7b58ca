"""A chat template as what it is, a program of somebody's: rendered, asked for what it puts around an answer, and kept
from taking the text of special tokens in a content for the tokens."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.messages import CALLS, LEARNT, Message
from rlhf_kit.data.refusals import TemplateRefusal
from rlhf_kit.data.runaway import refuse_runaway
from rlhf_kit.errors import UserError
from rlhf_kit.inputs import parse_json

logger = logging.getLogger(__name__)

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
# Characters of Unicode's supplementary private use area stand in for the text of special tokens.
_PRIVATE = 0xF0000
_PROBE = "\U000f8000"
_QUESTION = [{"role": "user", "content": "?"}]
# What stands before a text decides its first token: so many characters of it, and where they are not known or make a
# token with the text, the first of these that does not.
_TAIL = 64
SOME_TEXT = ":"
_SOME_TEXTS = (SOME_TEXT, "\n", "1")

Tools = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Frame:
    """What a template puts around a completion: `lead` (text) before it, `after` (text) after it.

    Args:
        before: the end of what stands before the lead.
        end: the ids that end the turn; the last of them is what a policy ends with.
        written: the template writes that end itself; else it has none, and EOS is put in its place.
    """

    before: str
    lead: str
    after: str
    end: list[int]
    written: bool = True


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()  # of several the one that serves
    except ValueError as error:
        raise TemplateRefusal(str(error)) from error


def has_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template in (GPT2_CHAT_TEMPLATE, BOS + GPT2_CHAT_TEMPLATE)


def is_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a dialogue's turns, encoded one by one, are what our own template makes of it."""
    return has_ours(tokenizer) and not _marks_texts(tokenizer, len(tokenizer))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no EOS token, so no turn can end. Set tokenizer.eos_token.")
    return tokenizer.eos_token_id


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, before: str = "") -> list[int]:
    """Ids of a text after `before`; "" where it begins. Data is text: "<|endoftext|>" in it does not end a turn."""
    return _ids_behind(tokenizer, before, text, split_special_tokens=True)


def _ids_behind(tokenizer: PreTrainedTokenizerBase, before: str, text: str, split_special_tokens: bool) -> list[int]:
    """Ids of a text as it stands behind another: SentencePiece marks what begins a text, and only that."""

    def encode(text: str) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": split_special_tokens, "verbose": False}
        return list(tokenizer(text, **options)["input_ids"])

    if before and _marks_texts(tokenizer, len(tokenizer)):
        for context in (before[-_TAIL:], *_SOME_TEXTS):
            own, whole = encode(context), encode(context + text)
            if whole[: len(own)] == own:
                return whole[len(own) :]
    return encode(text)


@lru_cache(maxsize=16)
def _marks_texts(tokenizer: PreTrainedTokenizerBase, size: int) -> bool:
    """Whether a text has other tokens alone than behind another, as SentencePiece's have."""
    behind, alone = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (SOME_TEXT + "1", "1"))
    return behind[-len(alone) :] != alone


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = False, **options
):
    """A dialogue as its template has it, as text unless `options` say otherwise; they may hold its variables."""
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt} | options
    refuse_runaway(
        str(tokenizer.chat_template),
        lambda: tokenizer.apply_chat_template(_QUESTION, tokenize=False, add_generation_prompt=True),
    )
    try:
        return tokenizer.apply_chat_template(_with_arguments(tokenizer, list(messages), options), **options)
    except Exception as error:  # a template is a program of somebody's
        words = str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
        raise TemplateRefusal(words, _system_advice(tokenizer, messages)) from error


def _with_arguments(tokenizer: PreTrainedTokenizerBase, messages: list[Message], options: dict) -> list[Message]:
    """`messages` with the arguments of calls in the form that the template writes as JSON.

    OpenAI's rows hold them as JSON text and most templates want objects: text would be written as JSON once more. Some
    want text, and write an object in Python's way.
    """
    if not any(message.get("tool_calls") for message in messages):
        return messages
    options = options | {"tokenize": False, "return_dict": False, "return_assistant_tokens_mask": False}
    for form in (lambda value: value, _object_of, _text_of):
        formed = [_formed(message, form) for message in messages]
        try:
            text = tokenizer.apply_chat_template(formed, **options)
        except Exception:  # a template is a program of somebody's
            continue
        if not any(_garbled(value) in text for message in formed for value in _arguments(message)):
            return formed
    return messages  # the template's own refusal is reported


def _formed(message: Message, form: Callable[[Any], Any]) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_formed_call(call, form) for call in calls]}


def _formed_call(call: Mapping[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _formed_call(call["function"], form)}
    return {**call, "arguments": form(call["arguments"])} if "arguments" in call else dict(call)


def _arguments(message: Message) -> list[Any]:
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    return [call["arguments"] for call in calls if call.get("arguments")]


def _object_of(arguments: Any) -> Any:
    try:
        return parse_json(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _text_of(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _garbled(arguments: Any) -> str:
    """How arguments look in a template that writes their other form: text quoted once more, an object as Python's."""
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, str) else str(arguments)


def _system_advice(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """What to do where the system turn alone is what the template refuses."""
    others = [message for message in messages if message["role"] != "system"]
    if len(others) == len(messages):
        return ""
    try:
        tokenizer.apply_chat_template(others, tokenize=False)
    except Exception:
        return ""
    return "It does not support a system turn: put the system text at the beginning of the first user turn."


@dataclass(frozen=True)
class Specials:
    """Tokens that text never makes: the named ones, and what was added as special (Llama 3's <|eot_id|>)."""

    ids: frozenset[int]
    marks: frozenset[int]  # and all else that was added, white space left out: some turn's end is not called special
    places: dict[str, int]  # the text of each special token, numbered
    pattern: re.Pattern  # finds any of these texts, the longest first


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> Specials:
    return _specials(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@lru_cache(maxsize=16)  # Gemma has 6,000 added tokens, too many to list for every message
def _specials(tokenizer: PreTrainedTokenizerBase, size: int, named: tuple[str, ...]) -> Specials:
    added = tokenizer.added_tokens_decoder
    special = {i: token.content for i, token in added.items() if token.special}
    special |= dict(zip(tokenizer.convert_tokens_to_ids(list(named)), named, strict=True))
    texts = sorted(set(special.values()), key=len, reverse=True)
    return Specials(
        frozenset(special),
        frozenset(i for i, token in added.items() if token.content.strip()),
        {text: place for place, text in enumerate(texts)},
        re.compile("|".join(map(re.escape, texts)) or r"(?!)"),
    )


def shield(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools = None
) -> tuple[list[Message], Tools, dict[str, str]]:
    """What the template is given, with answers bare and the text of special tokens, however deep it stands, as private
    characters; what each of these stands for. Whether a turn is learnt is no matter of the template's."""
    tokens = special_tokens(tokenizer)
    shielded: dict[str, str] = {}

    def stand_in(found: re.Match) -> str:
        character = chr(_PRIVATE + tokens.places[found[0]])
        shielded[character] = found[0]
        return character

    def safe(value: Any) -> Any:
        if isinstance(value, str):
            return tokens.pattern.sub(stand_in, value)
        if isinstance(value, Mapping):
            return {safe(key): safe(member) for key, member in value.items()}
        return [safe(member) for member in value] if isinstance(value, list | tuple) else value

    turns = []
    for message in messages:
        turn = {key: value for key, value in message.items() if key not in LEARNT}
        if turn["role"] == "assistant" and turn.get("content"):
            # as encode_completion does, so that the two agree
            turn["content"] = without_lead(tokenizer, turn["content"].strip())
        turns.append(safe(turn))
    return turns, safe(tools), shielded


def unread(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools = None) -> list[str]:
    """Names of what the template does not write of a dialogue: fields of its turns other than role and content, and
    `tools`."""
    known = ("role", "content", *LEARNT)
    fields = list(dict.fromkeys(name for turn in messages for name in turn if name not in known))
    if is_ours(tokenizer) or not (fields or tools):
        return fields + ["tools"] * bool(tools)
    turns = [{name: value for name, value in turn.items() if name not in LEARNT} for turn in messages]
    whole = render(tokenizer, turns, tools=tools)
    names = []
    for field in fields:
        without = [{name: value for name, value in turn.items() if name != field} for turn in turns]
        with suppress(TemplateRefusal):  # it asks for the field, so it reads it
            names += [field] * (render(tokenizer, without, tools=tools) == whole)
    return names + ["tools"] * bool(tools and render(tokenizer, turns) == whole)


def warn_unread(counts: Counter[str], rows: int, name: str) -> None:
    """Say once what is `unread` in how many of the `rows` called `name`."""
    if counts:
        fields = ", ".join(f"`{field}` (in {count} of {rows} rows)" for field, count in counts.items())
        logger.warning("%s: not read, as the chat template does not render them: %s", name, fields)


def refuse_unread(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools = None,
    counts: Counter[str] | None = None,
) -> None:
    """Refuse a dialogue whose calls or tools the template leaves out: it would be another dialogue.

    What else is `unread` is counted in `counts`, where they are given.
    """
    calls = any(turn.get(name) for turn in messages for name in CALLS)
    fields = unread(tokenizer, messages, tools) if calls or tools or counts is not None else []
    if counts is not None:
        counts.update(fields)
    lost = [name for name in fields if name in (*CALLS, "tools")] if calls or tools else []
    if lost:
        raise TemplateRefusal(
            f"it does not write {' and '.join(f'`{name}`' for name in lost)}",
            "Give a chat template that does (--chat_template_path), or put it into the text of a turn.",
        )


def refuse_dropped(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, tools: Tools = None
) -> None:
    """Refuse a dialogue of which a turn other than the assistant's is not in its rendered `text`."""
    for at, turn in enumerate(messages):
        content = turn.get("content")
        if turn["role"] == "assistant" or not content or content.strip() in text:
            continue
        probed = [*messages[:at], {**turn, "content": _PROBE}, *messages[at + 1 :]]  # it may be written as JSON
        if _PROBE not in render(tokenizer, probed, tools=tools):
            other = "Give another chat template (--chat_template_path)"
            elsewhere = "" if turn["role"] == "user" else ", or put their text into a turn of the user"
            raise TemplateRefusal(f"it leaves out turns of the role {turn['role']!r}", f"{other}{elsewhere}.")


def rendered_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, shielded: dict[str, str], before: str = ""
) -> list[int]:
    """Ids of a rendered template behind `before`: its special tokens are special, those that stood in a content are
    text."""
    pieces = re.split(f"([{''.join(shielded)}])", text) if shielded else [text]
    ids: list[int] = []
    for piece in filter(None, pieces):
        if piece in shielded:
            ids += text_ids(tokenizer, shielded[piece], before)
        else:
            ids += _ids_behind(tokenizer, before, piece, split_special_tokens=False)
        before = SOME_TEXT if piece in shielded else piece
    return ids


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What the template puts between the generation prompt and a completion, and behind it."""
    return _frame_in(tokenizer, template_of(tokenizer), tokenizer.eos_token_id, len(tokenizer))


@lru_cache(maxsize=16)
def _frame_in(tokenizer: PreTrainedTokenizerBase, template: str, eos: int | None, size: int) -> Frame:
    if is_ours(tokenizer):
        return Frame("Assistant:", " ", "", [eos_id(tokenizer)])
    prefix = render(tokenizer, _QUESTION, add_generation_prompt=True)
    full = render(tokenizer, [*_QUESTION, {"role": "assistant", "content": _PROBE}])
    until, probe, after = full.partition(_PROBE)
    if not probe:
        raise TemplateRefusal(
            "it does not render the assistant's text", "Give another chat template (--chat_template_path)."
        )
    before = prefix.rpartition(_QUESTION[0]["content"])[2] or SOME_TEXT
    lead = until.removeprefix(prefix) if until.startswith(prefix) else ""
    end = _turn_end(tokenizer, after)
    return Frame(before, lead, after, end or [eos_id(tokenizer)], written=bool(end))


def without_lead(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A completion without the lead that its template writes anyway, whatever white space the lead has in it."""
    lead = "".join(frame_of(tokenizer).lead.split())
    return re.sub(r"\A" + r"\s*".join(map(re.escape, lead)), "", text).strip() if lead else text


def led(tokenizer: PreTrainedTokenizerBase, completion: str, frame: Frame) -> str:
    """A completion with the template's lead; as the template renders it where it knows a lead in it (a thought)."""
    if frame.lead.strip():
        prefix = render(tokenizer, _QUESTION, add_generation_prompt=True)
        full = render(tokenizer, [*_QUESTION, {"role": "assistant", "content": completion}])
        answer = full.removeprefix(prefix).removesuffix(frame.after)
        if "".join(answer.split()) == "".join(completion.split()):
            return answer
    return frame.lead + completion


def _turn_end(tokenizer: PreTrainedTokenizerBase, after: str) -> list[int]:
    """Ids from the end of the content to the first token that no text makes: the newline many templates add behind is
    not said. [] without one."""
    ids, specials = rendered_ids(tokenizer, after, {}, SOME_TEXT), special_tokens(tokenizer)
    for ends in (specials.ids, specials.marks):
        at = next((at for at, i in enumerate(ids) if i in ends), None)
        if at is not None:
            return ids[: at + 1]
    return []


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion by the tokenizer: its end of text, and its chat template's end of a turn."""
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        with suppress(TemplateRefusal):  # which asks nobody in turns
            ends += frame_of(tokenizer).end[-1:]
    return list(dict.fromkeys(end for end in ends if end is not None))
