"""The table of what was measured, with intervals over prompts and seeds, and what may be said of it.

Differences are of the same prompts with the same seed, and so the same start model, reward model and draws. A claim is
made where its interval leaves out 0, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf_kit.comparison.methods import Entry
from rlhf_kit.comparison.records import START, Measurement
from rlhf_kit.intervals import crossed, percentiles, side

OF_ANSWERS = ("truth", "correct", "score", "win", "kl", "entropy", "length")
ALL, CHOOSING, COMPARING = slice(None), slice(0, None, 2), slice(1, None, 2)  # of the prompts
Key = tuple[str, float | None]  # a method's name and its strength
BEFORE: Key = (START, None)
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and prompts, or items, with its 95 % interval (None with one of them)."""

    value: float
    interval: Interval

    @property
    def side(self) -> int:
        """1 or -1 where the interval lies above or below 0; 0 where it cannot be told."""
        return side(self.interval)

    def turned(self) -> Figure:
        """The same difference, of the second less the first."""
        return Figure(-self.value, self.interval and (-self.interval[1], -self.interval[0]))


@dataclass(frozen=True)
class Row:
    """A method at one strength, or START.

    Args:
        figures: by name. gains: of what it is above the start, pair by pair.
        training: FLOPs of the run; None where they were not counted, 0 where nothing is trained. answering: of one
            answer. compute: of both, with the answers to all held-out prompts.
        seconds, memory: of the process that trains or, where nothing is trained, that answers; the most of all seeds.
    """

    entry: str
    strength: float | None
    seeds: tuple[int, ...]
    figures: Mapping[str, Figure | None]
    gains: Mapping[str, Figure | None]
    training: float | None
    answering: float
    compute: float | None
    seconds: float
    memory: int

    @property
    def key(self) -> Key:
        return self.entry, self.strength


class Values:
    """What was measured of each policy: by key, name and seed a number a prompt, or an item of a task."""

    def __init__(self, measurements: Iterable[Measurement]):
        self.measurements = list(measurements)
        self.by_key: dict[Key, dict[str, dict[int, NDArray]]] = {}
        starts = {each.place.seed: each.measured for each in self.measurements if each.place.entry == START}
        for each in self.measurements:
            place, before = each.place, starts[each.place.seed]
            values = self.by_key.setdefault((place.entry, place.strength), {})
            for name, column in _columns(each.measured, before).items():
                values.setdefault(name, {})[place.seed] = np.asarray(column, float)

    def figure(self, key: Key, name: str, less: Key | None = None, part: slice = ALL) -> Figure | None:
        """Of a policy, or of what it is above another one; None where nobody can tell. `part`: of the prompts."""
        columns = self.by_key[key].get(name, {})
        others = self.by_key[less].get(name, {}) if less is not None else columns
        seeds = [seed for seed in columns if seed in others]
        if not seeds:
            return None
        runs = np.stack([columns[seed][part] for seed in seeds])  # (S, N)
        if less is not None:
            runs = runs - np.stack([others[seed][part] for seed in seeds])
        prompts = np.arange(runs.shape[1])
        return Figure(float(runs.mean()), percentiles(crossed(runs, prompts, 0, 1)) if len(prompts) > 1 else None)

    def row(self, key: Key) -> Row:
        names, mine = (
            self.by_key[key],
            [each for each in self.measurements if (each.place.entry, each.place.strength) == key],
        )
        trained = [each.trained for each in mine]
        took = [each.trained or each.measured for each in mine]
        works = [0.0 if run is None else (run["work"] or {}).get("flops") for run in trained]
        training = None if None in works else float(np.mean(works))
        answering = float(np.mean([each.measured["flops_an_answer"] for each in mine]))
        answers = len(mine[0].measured["answers"]["texts"])
        return Row(
            *key,
            seeds=tuple(each.place.seed for each in mine),
            figures={name: self.figure(key, name) for name in names},
            gains={name: self.figure(key, name, BEFORE) for name in names},
            training=training,
            answering=answering,
            compute=None if training is None else training + answering * answers,
            seconds=float(np.mean([run["seconds"] for run in took])),
            memory=max(run["memory"] for run in took),
        )


def _columns(measured: Mapping, before: Mapping) -> dict[str, Sequence[float]]:
    """The columns of a policy's answers by name, those that are known; `before`: of the start with the same seed."""
    answers, theirs = measured["answers"], before["answers"]
    columns = {name: answers[column] for name, column in COLUMNS.items() if answers[column] is not None}
    columns["win"] = [(a > b) + 0.5 * (a == b) for a, b in zip(answers["truth"], theirs["truth"], strict=True)]
    return columns | (measured["tax"] or before["tax"])  # the best of n answers has the start's weights


COLUMNS = {name: {"score": "scores"}.get(name, name) for name in OF_ANSWERS if name != "win"}


# --- what is said ---------------------------------------------------------------------------------------------------


def chosen(values: Values, entry: Entry) -> Key | None:
    """A method at the strength with the most truth on every other prompt; the rest of them compare it."""
    keys = [(entry.name, strength) for strength in entry.strengths if (entry.name, strength) in values.by_key]
    return max(keys, key=lambda key: values.figure(key, "truth", part=CHOOSING).value, default=None)


def sentences(
    values: Values, entries: Sequence[Entry], tax: Sequence[str], between: Mapping[tuple[str, str], Figure]
) -> list[tuple[str, str]]:
    """What the intervals tell, in English and Chinese; nothing that they do not. `between`: of `gaps`."""
    if BEFORE not in values.by_key:
        return []
    best = [(entry, key) for entry in entries if (key := chosen(values, entry)) is not None]
    labels = {entry.name: f"{entry.name} ({entry.method.strength} {key[1]:g})" for entry, key in best}
    pairs = [_against_start(labels[entry.name], values, key, tax) for entry, key in best]
    pairs += _against_others(labels, between)
    return pairs + [pair for entry in entries for pair in _fooled(entry, values)]


def _against_start(label: str, values: Values, key: Key, tax: Sequence[str]) -> tuple[str, str]:
    """Truth and what is correct, on the prompts that did not choose the strength; of the tasks those that moved."""
    parts, zh_parts = [], []
    for name, words in GAINS.items():
        gain = values.figure(key, name, BEFORE, COMPARING)
        if gain is not None:
            english, chinese = words[gain.side]
            parts.append(f"{english}, {signed(gain)}")
            zh_parts.append(f"{chinese}，{signed(gain)}")
    gains = {task: values.figure(key, task, BEFORE) for task in tax}
    for task, gain in gains.items():
        if gain is not None and gain.side:
            english, chinese = ("more", "較多") if gain.side > 0 else ("fewer", "較少（對齊稅）")
            parts.append(f"{english} right in {task}{' (the alignment tax)' if gain.side < 0 else ''}, {signed(gain)}")
            zh_parts.append(f"{task} 答對{chinese}，{signed(gain)}")
    return f"{label} against the start: {'; '.join(parts)}.", f"{label} 與起點相比：{'；'.join(zh_parts)}。"


GAINS = {
    "truth": {
        1: ("more truth", "真相較高"),
        -1: ("less truth", "真相較低"),
        0: ("no difference shows in truth", "真相看不出差別"),
    },
    "correct": {
        1: ("more answers correct", "答對較多"),
        -1: ("fewer answers correct", "答對較少"),
        0: ("no difference shows in correct answers", "答對的比例看不出差別"),
    },
}


def gaps(values: Values, entries: Sequence[Entry]) -> dict[tuple[str, str], Figure]:
    """The truth of each method less that of each other one, both at their `chosen` strengths, on the other prompts."""
    best = {entry.name: key for entry in entries if (key := chosen(values, entry)) is not None}
    between = {}
    for one, other in combinations(best, 2):
        gap = values.figure(best[one], "truth", best[other], COMPARING)
        if gap is not None:
            between |= {(one, other): gap, (other, one): gap.turned()}
    return between


def _against_others(labels: Mapping[str, str], between: Mapping[tuple[str, str], Figure]) -> list[tuple[str, str]]:
    """Of each method those that its truth parts from, and those that it cannot be told from."""
    lines = []
    for name, label in labels.items():
        parts, zh_parts = [], []
        for where, (english, chinese) in BESIDE.items():
            others = [other for (one, other), gap in between.items() if one == name and gap.side == where]
            if others:
                parts.append(f"{english} {', '.join(others)}")
                zh_parts.append(f"{chinese} {'、'.join(others)}")
        if parts:
            lines.append((f"{label}: {'; '.join(parts)}.", f"{label}：{'；'.join(zh_parts)}。"))
    return lines


BESIDE = {
    1: ("more truth than", "真相高於"),
    -1: ("less truth than", "真相低於"),
    0: ("no difference in truth shows from", "看不出真相差別的有"),
}


def _fooled(entry: Entry, values: Values) -> list[tuple[str, str]]:
    """Where a method goes further and the reward model's score rises while the truth falls."""
    keys = [(entry.name, strength) for strength in entry.strengths if (entry.name, strength) in values.by_key]
    keys.sort(key=lambda key: values.figure(key, "kl").value)
    pairs = []
    for near, far in pairwise(keys):
        score, truth = (values.figure(far, name, near) for name in ("score", "truth"))
        if score is not None and truth is not None and score.side > 0 > truth.side:
            way = f"{entry.method.strength} {near[1]:g} → {far[1]:g}"
            pairs.append((
                f"{entry.name}, {way}: the reward model is being fooled. Its score rises, {signed(score)}, while the "
                f"truth falls, {signed(truth)}.",
                f"{entry.name}，{way}：獎勵模型被騙了。它的分數上升，{signed(score)}，真相卻下降，{signed(truth)}。",
            ))  # fmt: skip
    return pairs


def signed(figure: Figure) -> str:
    """+0.265 (+0.178 to +0.347), with real minus signs."""
    low, high = figure.interval or (figure.value, figure.value)
    return f"{figure.value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")
