"""What a row of each kind must hold: every fault in words, with its kind."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import WRONG_TYPE, Fault, describe, is_list, text_faults
from rlhf_kit.data.messages import (
    CALLS,
    OPENINGS,
    RESULTS,
    answer_turns,
    before_answer,
    completion_text,
    is_learnt,
    messages_faults,
    shared_prompt,
)

SAME_TEXT = "equal texts with different ranks"
NOTHING_LEARNT = "no turn to learn"


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [message["role"] for message in messages if message["role"] not in OPENINGS]


def _prompt_faults(value: Any, name: str = "`prompt`") -> Iterator[Fault]:
    if isinstance(value, str):
        yield from text_faults(name, value)
        return
    if not is_list(value):
        yield Fault(WRONG_TYPE, f"{name} is {describe(value)}; give a string or a list of messages")
        return
    faults = list(messages_faults(name, value))
    yield from faults
    if faults:
        return
    yield from _order_faults(name, value)
    if value[-1]["role"] not in ("user", *RESULTS):
        message = f"{name} ends with a turn of the {value[-1]['role']}; a prompt ends with a user turn"
        yield Fault("a wrong turn", message)


def _order_faults(name: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    roles = _roles(messages)
    if roles and roles[0] != "user":
        message = f"{name} begins with a turn of the {roles[0]}; the first turn (after any system turn) is the user's"
        yield Fault("a wrong turn", message)


def _demonstration_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    if row.get("messages") is None:
        yield from _prompt_faults(row["prompt"])
        yield from _completion_faults("`completion`", row["completion"], row["prompt"])
        return
    messages = row["messages"]
    faults = list(messages_faults("`messages`", messages))
    yield from faults
    if faults:
        return
    yield from _order_faults("`messages`", messages)
    if "assistant" not in _roles(messages):
        message = "`messages` has no assistant turn; a demonstration shows what the assistant says"
        yield Fault("no assistant turn", message)
    elif not any(map(is_learnt, messages)):
        yield Fault(NOTHING_LEARNT, "`messages` excludes every assistant turn from training; remove the row")
    elif messages[-1]["role"] != "assistant":
        message = f"`messages` ends with a turn of the {messages[-1]['role']}; the last turn is the assistant's"
        yield Fault("a wrong turn", message)


def _completion_faults(name: str, value: Any, prompt: Any, whole: bool = True) -> Iterator[Fault]:
    """Faults of a completion: text, or turns that begin and end with the assistant's (one turn if not `whole`)."""
    if not is_list(value):
        yield from text_faults(name, value)
        return
    faults = list(messages_faults(name, value))
    yield from faults
    if faults:
        return
    answer = answer_turns(value, prompt)
    if value[-1]["role"] != "assistant":
        message = f"{name} ends with a turn of the {value[-1]['role']}; a completion is the assistant's"
        yield Fault("a wrong turn", message)
    elif len(answer) > 1 and not (whole and answer[0]["role"] == "assistant"):
        message = f"{name} has {len(value)} turns that do not begin with the prompt; give the assistant's answer alone"
        yield Fault("a wrong turn", message)
    elif whole and not any(map(is_learnt, answer)):
        yield Fault(NOTHING_LEARNT, f"{name} excludes every assistant turn from training; remove the row")
    elif not whole and any(value[-1].get(call) for call in CALLS):
        message = f"{name} has tool calls, but an answer is text; give the text of the call as `content`"
        yield Fault("an answer with calls", message)
    elif not whole and not is_learnt(value[-1]):
        message = f"{name} is excluded from training, but every answer counts; remove the field or the row"
        yield Fault("an answer not to be learnt", message)


def _ranked_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _prompt_faults(row["prompt"])
    completions = row["completions"]
    if not is_list(completions):
        message = f"`completions` is {describe(completions)}; give a list of at least 2 answers"
        yield Fault(WRONG_TYPE, message)
        return
    if len(completions) < 2:
        answers = "no answer" if not completions else "one answer only"
        message = f"`completions` has {answers}; give at least 2, there is nothing to compare"
        yield Fault(answers, message)
        return
    faults = [
        fault
        for at, completion in enumerate(completions, start=1)
        for fault in _completion_faults(f"`completions`, answer {at}", completion, row["prompt"], whole=False)
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
            message = f"`ranks` holds {describe(wrong[0])}; ranks are whole numbers from 1 (1 = best, equal = tie)"
            yield Fault("`ranks` that are not whole numbers from 1", message)
    elif scores is not None:
        yield from _each_answer_faults("scores", scores, k, "one score per completion (higher is better, equal = tie)")
        wrong = [score for score in scores if not _is_finite(score)] if is_list(scores) and len(scores) == k else []
        if wrong:
            yield Fault("`scores` that are not numbers", f"`scores` holds {describe(wrong[0])}; give finite numbers")


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
            message = (
                f"`completions` {seen + 1} and {at + 1} are the same text with ranks {ranks[seen]} and {ranks[at]}; "
                "give them equal ranks or keep one"
            )
            yield Fault(SAME_TEXT, message)


def _prompt_row_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults of the prompt that a row of any kind holds; of its answers nothing is asked."""
    if row.get("prompt") is not None:
        yield from _prompt_faults(row["prompt"])
    elif row.get("messages") is None:
        yield from _shared_prompt_faults(row)
    elif not is_list(row["messages"]):
        yield from messages_faults("`messages`", row["messages"])
    else:
        yield from _prompt_faults(before_answer(row["messages"]), "`messages` before its answer")


def _shared_prompt_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults of the dialogue that `chosen` and `rejected` begin with."""
    prompt = shared_prompt(row["chosen"], row["rejected"])
    if prompt is not None:
        yield from _prompt_faults(prompt, "the dialogue before the answers")
        return
    message = (
        "there is no `prompt`, and `chosen` and `rejected` are not dialogues that differ only in their last turn; "
        "give `prompt`"
    )
    yield Fault("no prompt, and not dialogues that differ only in their last turn", message)


def _pair_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    of_prompt = list(_shared_prompt_faults(row) if prompt is None else _prompt_faults(prompt))
    if prompt is None:
        prompt = shared_prompt(chosen, rejected)
        if prompt is None:
            yield from of_prompt
            return
    faults = [
        *of_prompt,
        *_completion_faults("`chosen`", chosen, prompt, whole=False),
        *_completion_faults("`rejected`", rejected, prompt, whole=False),
    ]
    yield from faults
    if not faults and completion_text(chosen).strip() == completion_text(rejected).strip():
        message = "`chosen` and `rejected` are the same text; there is nothing to learn from it; remove the row"
        yield Fault(SAME_TEXT, message)
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
    yield from _completion_faults("`completion`", row["completion"], row["prompt"], whole=False)
    if not isinstance(row["label"], bool):
        message = f"`label` is {describe(row['label'])}; give true (a good answer) or false (a bad one)"
        yield Fault(WRONG_TYPE, message)


def _document_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from (faults := list(text_faults("`text`", row["text"])))
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
            message = f"`spans`, {at}: {list(span)} lies outside a text of {len(row['text'])} characters"
            yield Fault("span outside the text", f"{message}; count characters from 0, the end not included")


CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[Fault]]] = {
    "text": _document_faults,
    "demonstrations": _demonstration_faults,
    "ranked": _ranked_faults,
    "pairs": _pair_faults,
    "thumbs": _thumb_faults,
    "prompts": _prompt_row_faults,
}
