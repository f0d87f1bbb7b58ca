"""What a row of each kind must hold: every fault in words, with the kind of fault it is.

Also the few things to be known about prompts and completions that are text in one row and messages in another.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.errors import did_you_mean

ROLES = ("system", "user", "assistant")
SAME_TEXT = "equal texts with different ranks"
WRONG_TYPE = "wrong type"


class Fault(str):
    """What is wrong with a row, what was found and what to do; `kind` is it in a few words, to count by."""

    kind: str

    def __new__(cls, kind: str, text: str) -> Fault:
        fault = super().__new__(cls, text)
        fault.kind = kind
        return fault


def describe(value: Any) -> str:
    """A value as a message names it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, numbers.Number):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else f"a {type(value).__name__}"


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def completion_text(value: Any) -> str:
    """A completion given as text or as messages, as text."""
    return value if isinstance(value, str) else value[-1]["content"]


def as_messages(prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A prompt as messages: text is one turn of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def prompt_key(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal prompts, whether text or messages, whatever blanks stand around their turns."""
    return json.dumps([(turn["role"], turn["content"].strip()) for turn in as_messages(prompt)], ensure_ascii=False)


def shared_prompt(chosen: Any, rejected: Any) -> list[Mapping[str, Any]] | None:
    """The turns before the last of two dialogues, if there are any and they are the same."""
    if not (is_list(chosen) and is_list(rejected)) or len(chosen) < 2 or len(chosen) != len(rejected):
        return None
    return list(chosen[:-1]) if _clean(chosen[:-1]) == _clean(rejected[:-1]) else None


def _text_faults(name: str, value: Any) -> Iterator[Fault]:
    if not isinstance(value, str):
        yield Fault(WRONG_TYPE, f"{name} is {describe(value)}; give a string")
    elif not value.strip():
        yield Fault("empty text", f"{name} is empty; give some text or remove the row")


def _messages_faults(name: str, value: Any) -> Iterator[Fault]:
    """Faults of a list of messages, whichever turn it ends with."""
    if not is_list(value):
        yield Fault(WRONG_TYPE, f'{name} is {describe(value)}; give a list of {{"role", "content"}}')
        return
    if not value:
        yield Fault("no messages", f'{name} is an empty list; give at least one {{"role", "content"}}')
        return
    for at, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            found = ", ".join(f"`{key}`" for key in message) if isinstance(message, Mapping) else describe(message)
            found = found or "an empty object"
            yield Fault(WRONG_TYPE, f"{name}, turn {at}: found {found}; a turn has `role` and `content`")
            continue
        role = message["role"]
        if role not in ROLES:
            hint = did_you_mean(str(role), ROLES) or (" Did you mean 'user'?" if role == "human" else "")
            told = f"{name}, turn {at}: unknown role {role!r}; give one of {', '.join(ROLES)}.{hint}"
            yield Fault("unknown role", told)
        yield from _text_faults(f"{name}, turn {at}: `content`", message["content"])
        yield from _field_faults(f"{name}, turn {at}", message)


def _field_faults(turn: str, message: Mapping[str, Any]) -> Iterator[Fault]:
    """Fields without which a turn would be read wrongly, in silence; null and empty ones say nothing."""
    for field in ("tools", "tool_calls", "function_call"):
        if message.get(field):
            told = f"{turn}: `{field}` is not supported; write the call into the content, or remove the row"
            yield Fault(f"`{field}` in a turn", told)
    if message.get("weight") not in (None, 1):
        told = f"{turn}: `weight` {message['weight']!r} is not supported, each turn counts 1; remove row or field"
        yield Fault("`weight` of a turn", told)
    for field in ("train", "training", "loss"):  # what other trainers call a weight of 0
        if message.get(field) not in (None, True, 1):
            told = f"{turn}: `{field}` {message[field]!r} is not supported, each turn is learnt; remove row or field"
            yield Fault(f"`{field}` of a turn", told)


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [message["role"] for message in messages if message["role"] != "system"]


def _prompt_faults(value: Any, name: str = "`prompt`") -> Iterator[Fault]:
    if isinstance(value, str):
        yield from _text_faults(name, value)
        return
    if not is_list(value):
        yield Fault(WRONG_TYPE, f"{name} is {describe(value)}; give a string or a list of messages")
        return
    faults = list(_messages_faults(name, value))
    yield from faults
    if faults:
        return
    yield from _order_faults(name, value)
    if value[-1]["role"] != "user":
        told = f"{name} ends with a turn of the {value[-1]['role']}; a prompt ends with a user turn"
        yield Fault("a wrong turn", told)


def _order_faults(name: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    roles = _roles(messages)
    if roles and roles[0] != "user":
        told = f"{name} begins with a turn of the {roles[0]}; the first turn (after any system turn) is the user's"
        yield Fault("a wrong turn", told)


def _demonstration_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    if row.get("messages") is None:
        yield from _prompt_faults(row["prompt"])
        yield from _completion_faults("`completion`", row["completion"], row["prompt"])
        return
    messages = row["messages"]
    faults = list(_messages_faults("`messages`", messages))
    yield from faults
    if faults:
        return
    yield from _order_faults("`messages`", messages)
    if "assistant" not in _roles(messages):
        told = "`messages` has no assistant turn; a demonstration shows what the assistant says"
        yield Fault("no assistant turn", told)
    elif messages[-1]["role"] != "assistant":
        told = f"`messages` ends with a turn of the {messages[-1]['role']}; the last turn is the assistant's"
        yield Fault("a wrong turn", told)


def _completion_faults(name: str, value: Any, prompt: Any) -> Iterator[Fault]:
    if not is_list(value):
        yield from _text_faults(name, value)
        return
    faults = list(_messages_faults(name, value))
    yield from faults
    if faults:
        return
    if value[-1]["role"] != "assistant":
        told = f"{name} ends with a turn of the {value[-1]['role']}; a completion is the assistant's"
        yield Fault("a wrong turn", told)
    elif len(value) > 1 and not _repeats(value[:-1], prompt):
        told = f"{name} has {len(value)} turns that do not begin with the prompt; give the assistant's answer alone"
        yield Fault("a wrong turn", told)


def _repeats(turns: Sequence[Mapping[str, Any]], prompt: Any) -> bool:
    """True if the turns before an answer are the prompt again (whole dialogues as `chosen` and `rejected`)."""
    if isinstance(prompt, str):
        return len(turns) == 1 and turns[0]["role"] == "user" and turns[0]["content"].strip() == prompt.strip()
    return is_list(prompt) and _clean(turns) == _clean(prompt)


def _clean(messages: Sequence[Any]) -> list[Any]:
    return [
        (m["role"], m["content"].strip() if isinstance(m["content"], str) else m["content"])
        if isinstance(m, Mapping) and {"role", "content"} <= m.keys()
        else m
        for m in messages
    ]


def _ranked_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _prompt_faults(row["prompt"])
    completions = row["completions"]
    if not is_list(completions):
        told = f"`completions` is {describe(completions)}; give a list of at least 2 answers"
        yield Fault(WRONG_TYPE, told)
        return
    if len(completions) < 2:
        answers = "no answer" if not completions else "one answer only"
        told = f"`completions` has {answers}; give at least 2, there is nothing to compare"
        yield Fault(answers, told)
        return
    faults = [
        fault
        for at, completion in enumerate(completions, start=1)
        for fault in _completion_faults(f"`completions`, answer {at}", completion, row["prompt"])
    ]
    yield from faults
    order_faults = list(_order_of_answers_faults(row))
    yield from order_faults
    if not faults and not order_faults:
        yield from _identical_faults([completion_text(c).strip() for c in completions], ranks_of(row))
    yield from _extra_faults(row)


def ranks_of(row: Mapping[str, Any]) -> list[int]:
    """Ranks of a ranking without fault: its `ranks`, else by its `scores` (highest best, equal = tie), else 1..K."""
    if row.get("ranks") is not None:
        return [int(rank) for rank in row["ranks"]]
    if row.get("scores") is None:
        return list(range(1, len(row["completions"]) + 1))
    places = {score: rank for rank, score in enumerate(sorted(set(row["scores"]), reverse=True), start=1)}
    return [places[score] for score in row["scores"]]


def _order_of_answers_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    ranks, scores, k = row.get("ranks"), row.get("scores"), len(row["completions"])
    if ranks is not None:
        yield from _each_answer_faults("ranks", ranks, k, "one rank per completion (1 = best, equal = tie)")
        wrong = [rank for rank in ranks if not _is_rank(rank)] if is_list(ranks) and len(ranks) == k else []
        if wrong:
            told = f"`ranks` holds {describe(wrong[0])}; ranks are whole numbers from 1 (1 = best, equal = tie)"
            yield Fault("`ranks` that are no whole numbers from 1", told)
    elif scores is not None:
        yield from _each_answer_faults("scores", scores, k, "one score per completion (higher is better, equal = tie)")
        wrong = [score for score in scores if not _is_finite(score)] if is_list(scores) and len(scores) == k else []
        if wrong:
            yield Fault("`scores` that are no numbers", f"`scores` holds {describe(wrong[0])}; give finite numbers")


def _each_answer_faults(name: str, values: Any, k: int, need: str) -> Iterator[Fault]:
    """Faults of what is not a list with one entry for each of `k` answers."""
    if not is_list(values):
        yield Fault(WRONG_TYPE, f"`{name}` is {describe(values)}; give a list with {need}")
    elif len(values) != k:
        entries = "1 entry" if len(values) == 1 else f"{len(values)} entries"
        yield Fault(f"`{name}` of the wrong length", f"`{name}` has {entries} for {k} `completions`; give {need}")


def _is_rank(rank: Any) -> bool:
    return isinstance(rank, numbers.Integral) and not isinstance(rank, bool) and rank >= 1


def _identical_faults(completions: Sequence[str], ranks: Sequence[int]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for at, text in enumerate(completions):
        seen = first.setdefault(text, at)
        if ranks[seen] != ranks[at]:
            told = (
                f"`completions` {seen + 1} and {at + 1} are the same text with ranks {ranks[seen]} and {ranks[at]}; "
                "give them equal ranks or keep one"
            )
            yield Fault(SAME_TEXT, told)


def _pair_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    implicit = prompt is None
    if implicit:
        prompt = shared_prompt(chosen, rejected)
        if prompt is None:
            told = (
                "there is no `prompt`, and `chosen` and `rejected` are no dialogues that differ in their last turn "
                "only; give `prompt`"
            )
            yield Fault("no prompt", told)
            return
    faults = [
        *_prompt_faults(prompt, "the dialogue before the answers" if implicit else "`prompt`"),
        *_completion_faults("`chosen`", chosen, prompt),
        *_completion_faults("`rejected`", rejected, prompt),
    ]
    yield from faults
    if not faults and completion_text(chosen).strip() == completion_text(rejected).strip():
        told = "`chosen` and `rejected` are the same text; nothing can be learnt from it, remove the row"
        yield Fault(SAME_TEXT, told)
    yield from _extra_faults(row)
    group = row.get("group")
    if group is not None and not _is_name(group):
        yield Fault(WRONG_TYPE, f"`group` is {describe(group)}; give a string or a whole number")


def _extra_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults of the optional columns that rankings and pairs share."""
    margin, weight, labeler = row.get("margin"), row.get("weight"), row.get("labeler")
    if margin is not None and not _is_finite(margin):
        yield Fault(WRONG_TYPE, f"`margin` is {describe(margin)}; give a finite number")
    if weight is not None and not (_is_finite(weight) and weight > 0):
        yield Fault(WRONG_TYPE, f"`weight` is {describe(weight)}; give a finite number above 0")
    if labeler is not None and not _is_name(labeler):
        yield Fault(WRONG_TYPE, f"`labeler` is {describe(labeler)}; give a string or a whole number")


def _is_name(value: Any) -> bool:
    return isinstance(value, str | numbers.Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _thumb_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _prompt_faults(row["prompt"])
    yield from _completion_faults("`completion`", row["completion"], row["prompt"])
    if not isinstance(row["label"], bool):
        told = f"`label` is {describe(row['label'])}; give true (a good answer) or false (a bad one)"
        yield Fault(WRONG_TYPE, told)


def _document_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from (faults := list(_text_faults("`text`", row["text"])))
    spans = row.get("spans")
    if faults or spans is None:
        return
    if not is_list(spans):
        yield Fault(WRONG_TYPE, f"`spans` is {describe(spans)}; give a list of [start, end]")
        return
    for at, span in enumerate(spans, start=1):
        if not is_list(span) or len(span) != 2 or not all(isinstance(place, numbers.Integral) for place in span):
            yield Fault(WRONG_TYPE, f"`spans`, {at} is {describe(span)}; give [start, end], whole numbers")
        elif not 0 <= span[0] < span[1] <= len(row["text"]):
            told = f"`spans`, {at}: {list(span)} is no part of a text of {len(row['text'])} characters"
            yield Fault("span outside the text", f"{told}; count characters from 0, the end not included")


CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[Fault]]] = {
    "text": _document_faults,
    "demonstrations": _demonstration_faults,
    "ranked": _ranked_faults,
    "pairs": _pair_faults,
    "thumbs": _thumb_faults,
    "prompts": lambda row: _prompt_faults(row["prompt"]),
}
