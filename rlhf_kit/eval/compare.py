"""`rlhf-kit eval compare`: is one result better than another, on the same items? Paired, so that hard items cancel.

The difference comes with a 95 % interval by a bootstrap that draws whole stories. Where a score is only ever 0 or 1
there is McNemar's exact test too: it takes items for independent, so where stories have many the interval is to be
believed first.

Sources: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3; McNemar 1947, "Note on the
sampling error of the difference between correlated proportions or percentages".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from rlhf_kit.errors import UserError
from rlhf_kit.eval.items import Item, read_results
from rlhf_kit.intervals import intervals, mean, numbered, point
from rlhf_kit.options import option
from rlhf_kit.storage import as_json
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console


@dataclass
class CompareOptions:
    first: Path | None = option(None, "Folder of results. 結果的資料夾", positional="A", required=True)
    second: Path | None = option(
        None, "Folder of the results to compare with. 另一個資料夾", positional="B", required=True
    )
    seed: int = option(0, "Seed of the bootstrap. 亂數種子")
    json: bool = option(False, "Write the comparison as JSON. 以 JSON 輸出")


# Two results differ in these only if they are of different things.
SAME = ("task", "protocol", "version", "data_hash", "limit")


@dataclass(frozen=True)
class Comparison:
    """One score of two results, over the items of `group` ("" = all) that have it in both.

    Args:
        difference: second - first, with its 95 % interval over clusters (None where fewer than two).
        only_first, only_second: items that only one of the two has right, where a score is 0 or 1; else None.
        p: of McNemar's exact test, two-sided: how often so uneven a split would come of two equals; else None.
    """

    score: str
    group: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    items: int
    clusters: int
    only_first: int | None
    only_second: int | None
    p: float | None


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p: a fair coin thrown for each item that one has right and the other wrong.

    >>> mcnemar(1, 5)
    0.21875
    """
    thrown, fewer = only_first + only_second, min(only_first, only_second)
    ways, total = 1, 0
    for at in range(fewer + 1):
        total += ways
        ways = ways * (thrown - at) // (at + 1)
    return min(1.0, 2 * total / 2**thrown)


def compare(
    first: Sequence[Item], second: Sequence[Item], scales: Mapping[str, float], seed: int = 0
) -> list[Comparison]:
    """Every score of two lists of the same items, over all of them and group by group.

    Args:
        scales: by name of a score, what its mean is multiplied by; 1 where it is not named.

    Raises ValueError where the items are not the same.
    """
    if [(item.id, item.cluster, item.group) for item in first] != [
        (item.id, item.cluster, item.group) for item in second
    ]:
        raise ValueError("two results of different items")
    pairs = list(zip(first, second, strict=True))
    groups = {"": pairs}
    for group in sorted({item.group for item in first} - {""}):
        groups[group] = [pair for pair in pairs if pair[0].group == group]
    names = [name for name in _scores(first) if name in _scores(second)]
    rows = [
        _compared(name, group, part, scales.get(name, 1.0), seed) for group, part in groups.items() for name in names
    ]
    return [comparison for comparison in rows if comparison is not None]


def _compared(name: str, group: str, pairs: Sequence[tuple[Item, Item]], scale: float, seed: int) -> Comparison | None:
    both = np.array([[item.scores.get(name, math.nan) for item in pair] for pair in pairs])  # (N, 2)
    known = ~np.isnan(both).any(axis=1)
    if not known.any():
        return None
    both, clusters = both[known], numbered(pair[0].cluster for pair, there in zip(pairs, known, strict=True) if there)
    columns = (both[:, 0], both[:, 1], both[:, 1] - both[:, 0])
    figures = [mean(scale * column, clusters) for column in columns]
    values = [point(figure, clusters) for figure in figures]
    interval = intervals({"difference": figures[-1]}, clusters, seed)["difference"]
    split = tuple(int((columns[2] == sign).sum()) for sign in (-1, 1)) if np.isin(both, (0, 1)).all() else None
    return Comparison(
        name,
        group,
        *values,
        interval,
        len(both),
        int(clusters.max()) + 1,
        *(split or (None, None)),
        mcnemar(*split) if split else None,
    )


def _scores(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(name for item in items for name in item.scores))


# ------------------------------------------------------------------------------------------
# The command


def compare_folders(first: Path, second: Path, seed: int = 0) -> dict[str, Any]:
    """What the command tells. Raises UserError: no results there, or of different protocols, data or items."""
    (summary, items), (other, others) = read_results(first), read_results(second)
    settings, its = summary["settings"], other["settings"]
    unequal = [name for name in SAME if settings.get(name) != its.get(name)]
    if unequal:
        what = ", ".join(f"{name} {settings.get(name)!r} and {its.get(name)!r}" for name in unequal)
        raise UserError(f"{str(first)!r} and {str(second)!r} cannot be compared, because they differ in {what}.")
    # A score that the results tell as well is a percentage there, where they do not say otherwise by `scale`; of all
    # items or group by group alone.
    by_group = {name for part in summary["groups"].values() for name in part["scores"]} - set(summary["scores"])
    scales = dict.fromkeys([*summary["scores"], *by_group], summary["details"].get("scale", 100.0))
    try:
        rows = [row for row in compare(items, others, scales, seed) if row.group or row.score not in by_group]
    except ValueError as error:
        raise UserError(
            f"{str(first)!r} and {str(second)!r} hold different items; measure one of them again."
        ) from error
    return {
        "first": str(first),
        "second": str(second),
        "task": f"{settings['task']}, {settings['protocol']} {settings['version']}",
        "reportable": summary["reportable"] and other["reportable"],
        "settings": {
            name: [settings.get(name), its.get(name)]
            for name in {**settings, **its}
            if settings.get(name) != its.get(name)
        },
        "other_prompts": sum(one.prompt_hash != two.prompt_hash for one, two in zip(items, others, strict=True)),
        "comparisons": [asdict(comparison) for comparison in rows],
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    tell = partial(console.print, soft_wrap=True)
    tell(f"{found['task']}. A {found['first']}  B {found['second']}")
    table = Table("", "A", "B", "B - A", "95 %", "only A/B", "p", "n", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for row in found["comparisons"]:
        tested = row["p"] is not None
        digits = 3 if max(abs(row["first"]), abs(row["second"])) <= 1 else 2  # of shares and correlations
        table.add_row(
            " ".join(filter(None, [row["group"], row["score"]])),
            *(f"{row[name]:.{digits}f}" for name in ("first", "second")),
            f"{row['difference']:+.{digits}f}",
            " to ".join(f"{bound:+.{digits - 1}f}" for bound in row["interval"]) if row["interval"] else "–",
            f"{row['only_first']}/{row['only_second']}" if tested else "–",
            f"{row['p']:.2g}" if tested else "–",
            str(row["items"]),
        )
    console.print(table)
    tell(
        "only A/B: items that only one of the two answers correctly; p from McNemar's exact test. "
        "只有一方答對的題數與檢定。"
    )
    for name, values in found["settings"].items():
        tell(f"{name}: {values[0]} | {values[1]}")
    if found["other_prompts"]:
        tell(f"{found['other_prompts']} items had different prompts. 提示不同的題數。")
    if not found["reportable"]:
        tell("Limited to the first items: not reportable. 只評了前幾題，不可引用。")


def run(options: CompareOptions) -> None:
    """`rlhf-kit eval compare`. Raises UserError."""
    comparison = compare_folders(options.first, options.second, options.seed)
    if options.json:
        say(json.dumps(as_json(comparison), ensure_ascii=False, indent=2))
    else:
        show(comparison, Console())
