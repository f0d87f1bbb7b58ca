"""A ranking as its strictly ordered pairs, and pairs of one `group` put back into the ranking they came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from rlhf_kit.data.faults import Fault
from rlhf_kit.data.messages import completion_text, prompt_key, shared_prompt
from rlhf_kit.data.rows import Filed, holder, made

Row = dict[str, Any]
Key = tuple[Any, Any]
EXTRAS = ("margin", "weight", "labeler")  # optional columns that a ranking and its pairs share


def pairs_of(row: Mapping[str, Any], group: int) -> list[Row]:
    """All strictly ordered pairs of a ranking, the best answers first; none where all answers tie.

    Each carries `group` and `weight`, the ranking's weight (1 if it has none) over the number of its pairs, so that
    every prompt weighs the same however many answers it has (InstructGPT, arXiv:2203.02155, section 3.5).
    """
    rank_of = dict(zip(row["completions"], row["ranks"], strict=True))  # a text given twice is one answer
    ordered = sorted(rank_of, key=rank_of.__getitem__)
    pairs = [(one, other) for one, other in combinations(ordered, 2) if rank_of[one] < rank_of[other]]
    extras = {name: row[name] for name in EXTRAS if row.get(name) is not None}
    weight = extras.get("weight", 1.0) / max(len(pairs), 1)
    common = {**extras, "weight": weight, "group": group}
    return [{"prompt": row["prompt"], "chosen": one, "rejected": other, **common} for one, other in pairs]


def group_faults(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[int], Fault]]:
    """(positions of its rows, fault) of every group whose pairs are not of one ranking."""
    for (group, _), positions in _groups(rows).items():
        pairs = [rows[at] for at in positions]
        if len({prompt_key(_prompt(pair)) for pair in pairs}) > 1:
            text = f"the pairs of group {group!r} have different prompts; a group is one list of answers to one prompt"
            yield positions, Fault("a group of different prompts", text)
        elif len({pair.get("margin") for pair in pairs}) > 1:
            text = f"the pairs of group {group!r} have different margins; give one, or leave `group` out"
            yield positions, Fault("a group of different margins", text)
        else:
            ranks = _ranks([_texts(pair) for pair in pairs])
            if isinstance(ranks, Fault):
                yield positions, Fault(ranks.kind, f"the pairs of group {group!r} {ranks}")


def rankings(rows: Sequence[Mapping[str, Any]]) -> Sequence[Row]:
    """Rankings of pairs without fault: `prompt`, `completions` best first, `ranks` (1, 1, 2, ...), EXTRAS if given.

    Pairs of one `group` (and `labeler`) are one ranking, answers that no pair orders tie, and the weights of the pairs
    add up to the ranking's; a pair without `group` is a ranking of its own.
    """
    groups = {positions[0]: positions for positions in _groups(rows).values()}
    if not groups:
        return made(lambda pair: _ranking([pair]), rows)
    firsts = ((at, pair) for at, pair in enumerate(rows) if pair.get("group") is None or at in groups)
    lists = ([rows[each] for each in groups[at]] if at in groups else [pair] for at, pair in firsts)
    return holder(isinstance(rows, Filed))(map(_ranking, lists))


def _ranking(pairs: Sequence[Mapping[str, Any]]) -> Row:
    ranks = _ranks([_texts(pair) for pair in pairs])
    assert not isinstance(ranks, Fault), ranks  # `group_faults` has been asked
    order = sorted(ranks, key=ranks.__getitem__)
    row: Row = {"prompt": _prompt(pairs[0]), "completions": order, "ranks": [ranks[text] for text in order]}
    row |= {name: pairs[0][name] for name in EXTRAS if pairs[0].get(name) is not None}
    if pairs[0].get("group") is not None and "weight" in row:
        row["weight"] = round(math.fsum(pair.get("weight") or 1.0 for pair in pairs), 9)
        if row["weight"] == 1.0:
            del row["weight"]  # as it was before it was shared out
    return row


def group_key(row: Mapping[str, Any], at: int) -> Key:
    """What rows of one ranking share. `at` tells pairs apart that are of no group."""
    group = row.get("group")
    return (None, at) if group is None else (group, row.get("labeler"))


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[Key, list[int]]:
    """The positions of the pairs of each group; a pair without one stands alone."""
    groups: dict[Key, list[int]] = {}
    for at, row in enumerate(rows):
        if row.get("group") is not None:
            groups.setdefault(group_key(row, at), []).append(at)
    return groups


def _prompt(pair: Mapping[str, Any]) -> Any:
    prompt = pair.get("prompt")
    return shared_prompt(pair["chosen"], pair["rejected"]) if prompt is None else prompt


def _texts(pair: Mapping[str, Any]) -> tuple[str, str]:
    return completion_text(pair["chosen"]), completion_text(pair["rejected"])


def _ranks(pairs: Sequence[tuple[str, str]]) -> dict[str, int] | Fault:
    """Ranks from 1 of the answers in (better, worse) pairs, or why the pairs are not of one ranking with ties."""
    worse: dict[str, set[str]] = {text: set() for pair in pairs for text in pair}
    for one, other in pairs:
        worse[one].add(other)
    ranks = levels(worse)
    if len(ranks) < len(worse):
        among = ", ".join(repr(text[:40]) for text in worse if text not in ranks)
        return Fault("pairs of a group that contradict one another", f"contradict one another (among {among})")
    for text in sorted(ranks, key=ranks.__getitem__, reverse=True):  # from the worst: what is below the worse is below
        worse[text] = worse[text].union(*(worse[other] for other in worse[text]))
    for one, other in combinations(sorted(ranks, key=ranks.__getitem__), 2):
        if ranks[one] < ranks[other] and other not in worse[one]:
            message = f"leave open which of {one[:40]!r} and {other[:40]!r} is better; give their pair, or no `group`"
            return Fault("pairs of a group that leave the order open", message)
    return ranks


def levels(worse: Mapping[str, set[str]]) -> dict[str, int]:
    """Ranks from 1: the answers that none is better than, those that only they are better than, and so on.

    `worse` holds for every answer those it is better than. Answers on or below a cycle get no rank.
    """
    ranks: dict[str, int] = {}
    level = 0
    while best := _unbeaten(worse, ranks):
        level += 1
        ranks |= dict.fromkeys(best, level)
    return ranks


def _unbeaten(worse: Mapping[str, set[str]], ranked: Mapping[str, int]) -> list[str]:
    left = [text for text in worse if text not in ranked]
    return [text for text in left if not any(text in worse[other] for other in left)]
