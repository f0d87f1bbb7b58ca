"""The contracts of the kinds of data: which columns there are, and the faults of a whole source.

`validate` tells every fault of a source at once, each with its row, what was found and what is needed; `sift` leaves
the faulty rows out and says which they were. What a column must hold is in `checks`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_kit.data.checks import CHECKS
from rlhf_kit.data.faults import WRONG_TYPE, Context, Fault, describe, half_characters
from rlhf_kit.data.groups import EXTRAS, group_faults, group_key
from rlhf_kit.data.messages import OPENING, opening_faults, with_opening
from rlhf_kit.data.orders import ORDERS, missing_orders
from rlhf_kit.data.rows import chosen
from rlhf_kit.errors import UserError, did_you_mean

SHOWN = 20  # faults told in full
NAMED = 40  # columns of a source, and characters of the name of each, named in a message


@dataclass(frozen=True)
class Kind:
    """Columns of one kind of data: those of one of `forms` must be there, `optional` ones are read where they are."""

    forms: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    def form(self, columns: Iterable[str]) -> tuple[str, ...] | None:
        """The first form whose columns are all in `columns`."""
        columns = set(columns)
        return next((form for form in self.forms if columns.issuperset(form)), None)

    def needed(self) -> str:
        return ", or ".join(" + ".join(f"`{column}`" for column in form) for form in self.forms)


KINDS: dict[str, Kind] = {
    "text": Kind((("text",),), ("spans",)),
    "demonstrations": Kind((("messages",), ("prompt", "completion")), (*OPENING, "tools")),
    "ranked": Kind((("prompt", "completions"),), (*ORDERS, *EXTRAS, *OPENING)),
    # Without `prompt`, `chosen` and `rejected` are whole dialogues and what they share is the prompt (as in TRL).
    "pairs": Kind((("prompt", "chosen", "rejected"), ("chosen", "rejected")), ("group", *EXTRAS, *OPENING)),
    "thumbs": Kind((("prompt", "completion", "label"),), OPENING),
    "prompts": Kind((("prompt",), ("messages",), ("chosen", "rejected"))),
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

# Columns that are part of what is asked; nothing is lost where the prompt holds their text already.
PART_OF_PROMPT = (
    "instruction input context document documents passage system system_prompt system_message history tools functions "
    "image images audio video"
).split()
SYSTEM = ("system_prompt", "system_message")  # what others call a `system` column


def detect_kind(columns: Iterable[str], kinds: Sequence[str]) -> str | None:
    """The kind of `kinds` that `columns` fit: the one with most columns, the first of equals; None if none fits."""
    columns = list(columns)
    fits = [(len(form), kind) for kind in kinds if (form := KINDS[kind].form(columns))]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None


def told_columns(columns: Sequence[str]) -> str:
    """Their names, of many and of long ones the beginning."""
    names = ", ".join(f"`{column[:NAMED]}`" for column in columns[:NAMED]) or "none"
    return names + (f" and {len(columns) - NAMED} more" if len(columns) > NAMED else "")


def columns_fault(columns: Sequence[str], kinds: Sequence[str]) -> str:
    """What to say of columns that fit none of `kinds`: found, needed, nearest fix."""
    names = told_columns(columns)
    needed = "; ".join(f"{KINDS[kind].needed()} ({kind})" for kind in kinds)
    renames = _renames(columns, kinds)
    renames += [(name, "system") for name in columns if renames and name.lower() in SYSTEM]
    wanted = " and ".join(f"`{old}` to `{new}`" for old, new in renames)
    advice = f" Rename {wanted or 'those that hold it, or give another file'}."
    lost = [name for name in columns if name.lower() in PART_OF_PROMPT and name not in (*OPENING, *dict(renames))]
    if renames and lost:
        advice += f" Put {' and '.join(f'`{name}`' for name in lost)} into the prompt."
    return f"the columns are {names}; needed: {needed}.{advice}"


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
    heading = f"{len(faults)} fault{'' if len(faults) == 1 else 's'} in {rows}; nothing was loaded"
    lines = [f"{source}: {heading}. Fix these rows, or give other data."]
    lines += [f"  {f'{unit} {number}: ' if number else ''}{fault}" for number, fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"  ... and {len(faults) - SHOWN} more")
    return UserError("\n".join(lines))


def validate(rows: Sequence[Any], kind: str, source: str, context: Context | None = None) -> None:
    """Raise one UserError with all faults of `rows` (and of `context`) against the contract of `kind`."""
    context = context or Context()
    of_rows, of_groups = _find(rows, kind)
    numbers = context.numbers_of(rows)
    faults = [*context.faults, *((numbers[at], fault) for at, row_faults in of_rows.items() for fault in row_faults)]
    faults += [(numbers[positions[0]], fault) for positions, fault in of_groups]
    if faults:
        total = len(set(numbers) | {number for number, _ in context.faults if number})
        raise report(source, faults, total, context.unit)
    if not rows:
        message = f"{source} holds no rows; {kind} needs at least one with {KINDS[kind].needed()}"
        raise UserError(f"{message}. Give it some, or give another source.")


def keep(rows: Sequence[Any], context: Context, kept: Sequence[int]) -> tuple[Sequence[Any], Context]:
    """The rows at the positions `kept`, and their context."""
    return chosen(rows, kept), Context(context.unit, chosen(context.numbers_of(rows), kept), context.faults)


def sift(rows: Sequence[Any], kind: str, context: Context) -> tuple[Sequence[Any], Context, dict[str, list[int]]]:
    """(rows without fault, their context, numbers of the others by the kind of their first fault).

    Pairs of a group with a faulty pair go with it: what is left of the group would be another ranking.
    """
    of_rows, of_groups = _find(rows, kind)
    kinds = {at: faults[0].kind for at, faults in of_rows.items()}
    kinds |= {at: fault.kind for positions, fault in of_groups for at in positions}
    if kind == "pairs":
        # By `repr`: what stands in a faulty row may be of any type.
        broken = {repr(group_key(rows[at], at)) for at in kinds if isinstance(rows[at], Mapping)}
        for at, row in enumerate(rows):
            if at not in kinds and repr(group_key(row, at)) in broken:
                kinds[at] = "in a group with a faulty pair"
    numbers = context.numbers_of(rows)
    bad: dict[str, list[int]] = {}
    for at in sorted(kinds):
        bad.setdefault(kinds[at], []).append(numbers[at])
    return *keep(rows, context, array("Q", (at for at in range(len(rows)) if at not in kinds))), bad


def _find(rows: Sequence[Any], kind: str) -> tuple[dict[int, list[Fault]], list[tuple[list[int], Fault]]]:
    """Faults by the position of their row, and faults of groups of pairs that have none by their rows' positions."""
    of_rows = {at: faults for at, row in enumerate(rows) if (faults := list(_row_faults(row, kind)))}
    if kind == "ranked":
        of_rows = {at: [fault] for at, fault in missing_orders(rows).items()} | of_rows
    if kind != "pairs":
        return of_rows, []
    sound = array("Q", (at for at in range(len(rows)) if at not in of_rows))
    of_groups = group_faults(chosen(rows, sound))
    return of_rows, [([sound[at] for at in positions], fault) for positions, fault in of_groups]


def _row_faults(row: Any, kind: str) -> Iterator[Fault]:
    if not isinstance(row, Mapping):
        yield Fault(WRONG_TYPE, f"is {describe(row)}; a row is an object with {KINDS[kind].needed()}")
        return
    yield from half_characters(row)
    present = [column for column, value in row.items() if value is not None]
    form = KINDS[kind].form(present)
    if form is None:
        yield Fault("wrong columns", columns_fault(present, [kind]))
        return
    if kind != "text":
        yield from (faults := list(opening_faults(row)))
        row = row if faults else with_opening(row)
    yield from CHECKS[kind](row)
