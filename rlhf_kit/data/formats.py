"""The contracts of the kinds of data: which columns, what stands in them, and what a row becomes.

`validate` tells every fault of a source at once, each with its row, what was found and what is needed.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_kit.errors import UserError, did_you_mean

SHOWN = 20  # faults told in full
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Kind:
    """Columns of one kind of data: one of `forms` must be there, `optional` may be."""

    forms: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    def form(self, columns: Iterable[str]) -> tuple[str, ...] | None:
        """The first form whose columns are all in `columns`."""
        columns = set(columns)
        return next((form for form in self.forms if columns.issuperset(form)), None)

    def needed(self) -> str:
        return ", or ".join(" + ".join(f"`{column}`" for column in form) for form in self.forms)


KINDS: dict[str, Kind] = {
    "text": Kind((("text",),)),
    "demonstrations": Kind((("messages",), ("prompt", "completion"))),
    "ranked": Kind((("prompt", "completions"),), ("ranks",)),
    # Without `prompt`, `chosen` and `rejected` are whole dialogues and what they share is the prompt (as in TRL).
    "pairs": Kind((("prompt", "chosen", "rejected"), ("chosen", "rejected")), ("margin",)),
    "thumbs": Kind((("prompt", "completion", "label"),)),
    "prompts": Kind((("prompt",),)),
}

# What other projects call our columns.
_ALIASES = {
    "prompt": ("instruction", "question", "query", "input", "prompts"),
    "completion": ("response", "answer", "output", "completions"),
    "completions": ("responses", "answers", "outputs", "completion"),
    "messages": ("conversations", "conversation", "dialogue", "message"),
    "ranks": ("rank", "ranking", "rankings"),
    "chosen": ("preferred", "winner", "accepted"),
    "rejected": ("dispreferred", "loser"),
    "label": ("labels", "thumb", "thumbs", "liked"),
    "text": ("content", "document", "story"),
}


@dataclass
class Context:
    """Where rows stood in their source, and the faults already found while reading them."""

    unit: str = "row"  # what the numbers count, both from 1: "line" of a .jsonl file, "row" of anything else
    numbers: Sequence[int] | None = None  # of each row; None = 1, 2, 3...
    faults: list[tuple[int, str]] = field(default_factory=list)  # (number, what is wrong)


def detect_kind(columns: Iterable[str], kinds: Sequence[str]) -> str | None:
    """The kind of `kinds` that `columns` fit: the one with most columns, the first of equals; None if none fits."""
    columns = list(columns)
    fits = [(len(form), kind) for kind in kinds if (form := KINDS[kind].form(columns))]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None


def columns_fault(columns: Sequence[str], kinds: Sequence[str]) -> str:
    """What to say of columns that fit none of `kinds`: found, needed, nearest fix."""
    found = ", ".join(f"`{column}`" for column in columns) or "none"
    needed = "; ".join(f"{KINDS[kind].needed()} ({kind})" for kind in kinds)
    renames = _renames(columns, kinds)
    advice = f" Rename {' and '.join(f'`{old}` to `{new}`' for old, new in renames)}." if renames else ""
    return f"the columns are {found}; needed: {needed}.{advice}"


def _renames(columns: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(found, needed) names for the form that renaming gets complete with the fewest changes."""
    best: list[tuple[str, str]] = []
    best_missing: float = math.inf
    for form in (form for kind in kinds for form in KINDS[kind].forms):
        missing = [column for column in form if column not in columns]
        spare = [column for column in columns if column not in form]
        renames = []
        for column in missing:
            if near := _nearest(column, spare):
                spare.remove(near)
                renames.append((near, column))
        left = len(missing) - len(renames)
        if renames and (left, len(renames)) < (best_missing, len(best) or math.inf):
            best, best_missing = renames, left
    return best


def _nearest(column: str, spare: Sequence[str]) -> str | None:
    alias = next((name for name in spare if name.lower() in (column, *_ALIASES.get(column, ()))), None)
    return alias or next((name for name in spare if did_you_mean(name, [column])), None)


def report(source: str, faults: Sequence[tuple[int, str]], total: int, unit: str = "row") -> UserError:
    """All `faults` of a source in one error. Number 0 = the source as a whole."""
    faults = sorted(faults, key=lambda fault: fault[0])
    rows = f"{total} row{'' if total == 1 else 's'}"
    lines = [f"{source}: {len(faults)} fault{'' if len(faults) == 1 else 's'} in {rows}; nothing was loaded."]
    lines += [f"  {f'{unit} {number}: ' if number else ''}{fault}" for number, fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"  ... and {len(faults) - SHOWN} more")
    return UserError("\n".join(lines))


def validate(rows: Sequence[Any], kind: str, source: str, context: Context | None = None) -> None:
    """Raise one UserError with all faults of `rows` (and of `context`) against the contract of `kind`."""
    context = context or Context()
    faults = list(context.faults)
    numbers_ = context.numbers if context.numbers is not None else range(1, len(rows) + 1)
    for number, row in zip(numbers_, rows, strict=True):
        faults += [(number, fault) for fault in _row_faults(row, kind)]
    if faults:
        raise report(
            source, faults, len(set(numbers_) | {number for number, _ in context.faults if number}), context.unit
        )
    if not rows:
        raise UserError(f"{source} holds no rows; {kind} needs at least one with {KINDS[kind].needed()}.")


def _row_faults(row: Any, kind: str) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"is {_describe(row)}; a row is an object with {KINDS[kind].needed()}"
        return
    present = [column for column, value in row.items() if value is not None]
    form = KINDS[kind].form(present)
    if form is None:
        yield columns_fault(present, [kind])
        return
    yield from _CHECKS[kind](row)


def _describe(value: Any) -> str:
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


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _text_faults(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{name} is {_describe(value)}; give a string"
    elif not value.strip():
        yield f"{name} is empty; give some text or remove the row"


def _messages_faults(name: str, value: Any) -> Iterator[str]:
    """Faults of a list of messages, whichever turn it ends with."""
    if not _is_list(value):
        yield f'{name} is {_describe(value)}; give a list of {{"role", "content"}}'
        return
    if not value:
        yield f'{name} is an empty list; give at least one {{"role", "content"}}'
        return
    for at, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            found = ", ".join(f"`{key}`" for key in message) if isinstance(message, Mapping) else _describe(message)
            yield f"{name}, turn {at}: found {found or 'an empty object'}; a turn has `role` and `content`"
            continue
        if message["role"] not in ROLES:
            advice = did_you_mean(str(message["role"]), ROLES) or {"human": " Did you mean 'user'?"}.get(
                message["role"] if isinstance(message["role"], str) else "", ""
            )
            yield f"{name}, turn {at}: unknown role {message['role']!r}; give one of {', '.join(ROLES)}.{advice}"
        yield from _text_faults(f"{name}, turn {at}: `content`", message["content"])


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [message["role"] for message in messages if message["role"] != "system"]


def _prompt_faults(value: Any, name: str = "`prompt`") -> Iterator[str]:
    if isinstance(value, str):
        yield from _text_faults(name, value)
        return
    if not _is_list(value):
        yield f"{name} is {_describe(value)}; give a string or a list of messages"
        return
    faults = list(_messages_faults(name, value))
    yield from faults
    if faults:
        return
    yield from _order_faults(name, value)
    if value[-1]["role"] != "user":
        yield f"{name} ends with a turn of the {value[-1]['role']}; a prompt ends with a user turn"


def _order_faults(name: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    roles = _roles(messages)
    if roles and roles[0] != "user":
        yield f"{name} begins with a turn of the {roles[0]}; the first turn (after any system turn) is the user's"


def _demonstration_faults(row: Mapping[str, Any]) -> Iterator[str]:
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
        yield "`messages` has no assistant turn; a demonstration shows what the assistant says"
    elif messages[-1]["role"] != "assistant":
        yield f"`messages` ends with a turn of the {messages[-1]['role']}; the last turn is the assistant's"


def _completion_faults(name: str, value: Any, prompt: Any) -> Iterator[str]:
    if not _is_list(value):
        if isinstance(value, str):
            yield from _text_faults(name, value)
        else:
            yield f"{name} is {_describe(value)}; give a string"
        return
    faults = list(_messages_faults(name, value))
    yield from faults
    if faults:
        return
    if value[-1]["role"] != "assistant":
        yield f"{name} ends with a turn of the {value[-1]['role']}; a completion is the assistant's"
    elif len(value) > 1 and not _repeats(value[:-1], prompt):
        yield f"{name} has {len(value)} turns that do not begin with the prompt; give the assistant's answer alone"


def _repeats(turns: Sequence[Mapping[str, Any]], prompt: Any) -> bool:
    """True if the turns before an answer are the prompt again (whole dialogues as `chosen` and `rejected`)."""
    if isinstance(prompt, str):
        return len(turns) == 1 and turns[0]["role"] == "user" and turns[0]["content"].strip() == prompt.strip()
    return _is_list(prompt) and _clean(turns) == _clean(prompt)


def _clean(messages: Sequence[Any]) -> list[Any]:
    return [
        (m["role"], m["content"].strip() if isinstance(m["content"], str) else m["content"])
        if isinstance(m, Mapping) and {"role", "content"} <= m.keys()
        else m
        for m in messages
    ]


def completion_text(value: Any) -> str:
    """A completion given as text or as messages, as text."""
    return value if isinstance(value, str) else value[-1]["content"]


def _ranked_faults(row: Mapping[str, Any]) -> Iterator[str]:
    yield from _prompt_faults(row["prompt"])
    completions, ranks = row["completions"], row.get("ranks")
    if not _is_list(completions):
        yield f"`completions` is {_describe(completions)}; give a list of at least 2 answers"
        return
    if len(completions) < 2:
        answers = "no answer" if not completions else "one answer only"
        yield f"`completions` has {answers}; give at least 2, there is nothing to compare"
        return
    faults = [
        fault
        for at, completion in enumerate(completions, start=1)
        for fault in _completion_faults(f"`completions`, answer {at}", completion, row["prompt"])
    ]
    yield from faults
    rank_faults = list(_rank_faults(ranks, len(completions))) if ranks is not None else []
    yield from rank_faults
    if not faults and not rank_faults:
        yield from _identical_faults([completion_text(c).strip() for c in completions], ranks)


def _rank_faults(ranks: Any, k: int) -> Iterator[str]:
    if not _is_list(ranks):
        yield f"`ranks` is {_describe(ranks)}; give a list with one rank per completion (1 = best, equal = tie)"
        return
    if len(ranks) != k:
        entries = "1 entry" if len(ranks) == 1 else f"{len(ranks)} entries"
        yield f"`ranks` has {entries} for {k} `completions`; give one rank per completion (1 = best, equal = tie)"
        return
    wrong = [rank for rank in ranks if not _is_rank(rank)]
    if wrong:
        yield f"`ranks` holds {_describe(wrong[0])}; ranks are whole numbers from 1 (1 = best, equal = tie)"
    elif len(set(ranks)) == 1:
        yield f"`ranks` are all {ranks[0]}; a list in which every answer ties teaches nothing, remove the row"


def _is_rank(rank: Any) -> bool:
    return isinstance(rank, numbers.Integral) and not isinstance(rank, bool) and rank >= 1


def _identical_faults(completions: Sequence[str], ranks: Sequence[int] | None) -> Iterator[str]:
    ranks = ranks if ranks is not None else range(1, len(completions) + 1)
    first: dict[str, int] = {}
    for at, text in enumerate(completions):
        seen = first.setdefault(text, at)
        if ranks[seen] != ranks[at]:
            yield (
                f"`completions` {seen + 1} and {at + 1} are the same text with ranks {ranks[seen]} and {ranks[at]}; "
                "give them equal ranks or keep one"
            )


def _pair_faults(row: Mapping[str, Any]) -> Iterator[str]:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    implicit = prompt is None
    if implicit:
        prompt = shared_prompt(chosen, rejected)
        if prompt is None:
            yield (
                "there is no `prompt`, and `chosen` and `rejected` are no dialogues that differ in their last turn "
                "only; give `prompt`"
            )
            return
    faults = [
        *_prompt_faults(prompt, "the dialogue before the answers" if implicit else "`prompt`"),
        *_completion_faults("`chosen`", chosen, prompt),
        *_completion_faults("`rejected`", rejected, prompt),
    ]
    yield from faults
    if not faults and completion_text(chosen).strip() == completion_text(rejected).strip():
        yield "`chosen` and `rejected` are the same text; nothing can be learnt from it, remove the row"
    margin = row.get("margin")
    if margin is not None:
        real = isinstance(margin, numbers.Real) and not isinstance(margin, bool)
        if not real or not math.isfinite(margin):
            yield f"`margin` is {_describe(margin)}; give a finite number"


def shared_prompt(chosen: Any, rejected: Any) -> list[Mapping[str, Any]] | None:
    """The turns before the last of two dialogues, if there are any and they are the same."""
    if not (_is_list(chosen) and _is_list(rejected)) or len(chosen) < 2 or len(chosen) != len(rejected):
        return None
    return list(chosen[:-1]) if _clean(chosen[:-1]) == _clean(rejected[:-1]) else None


def _thumb_faults(row: Mapping[str, Any]) -> Iterator[str]:
    yield from _prompt_faults(row["prompt"])
    yield from _completion_faults("`completion`", row["completion"], row["prompt"])
    if not isinstance(row["label"], bool):
        yield f"`label` is {_describe(row['label'])}; give true (a good answer) or false (a bad one)"


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "text": lambda row: _text_faults("`text`", row["text"]),
    "demonstrations": _demonstration_faults,
    "ranked": _ranked_faults,
    "pairs": _pair_faults,
    "thumbs": _thumb_faults,
    "prompts": lambda row: _prompt_faults(row["prompt"]),
}
