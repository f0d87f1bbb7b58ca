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
from rlhf_kit.intervals import crossed, percentiles

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
        if self.interval is None:
            return 0
        low, high = self.interval
        return (low > 0) - (high < 0)


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


def sentences(values: Values, entries: Sequence[Entry], tax: Sequence[str]) -> list[tuple[str, str]]:
    """What the intervals tell, in English and Chinese; nothing that they do not."""
    if BEFORE not in values.by_key:
        return []
    best = {entry.name: key for entry in entries if (key := chosen(values, entry)) is not None}
    labels = {
        entry.name: f"{entry.name} ({entry.method.strength} {best[entry.name][1]:g})"
        for entry in entries
        if entry.name in best
    }
    pairs = []
    for name, key in best.items():
        pairs += _against_start(labels[name], values, key, tax)
    pairs += _against_others(labels, values, best)
    for entry in entries:
        pairs += _fooled(entry, values)
    return pairs


def _against_start(label: str, values: Values, key: Key, tax: Sequence[str]) -> list[tuple[str, str]]:
    """A sentence of truth and of what is correct, on the prompts that did not choose the strength; one of the tax."""
    pairs = []
    words = {"truth": ("truth", "真相分數"), "correct": ("the share of correct answers", "答對比例")}
    for name, (english, chinese) in words.items():
        gain = values.figure(key, name, BEFORE, COMPARING)
        if gain is not None:
            verb, zh_verb = _verbs(gain)
            pairs.append(
                (
                    f"{label} {verb} {english} against the start: {_signed(gain)}.",
                    f"{label} 與起點相比，{chinese}{zh_verb}：{_signed(gain)}。",
                )
            )
    gains = {task: values.figure(key, task, BEFORE) for task in tax}
    moved = {task: gain for task, gain in gains.items() if gain is not None and gain.side}
    for task, gain in moved.items():
        verb, zh_verb = ("gained", "進步") if gain.side > 0 else ("lost (the alignment tax)", "退步（對齊稅）")
        pairs.append((f"{label} {verb} {task}: {_signed(gain)}.", f"{label} 在 {task} {zh_verb}：{_signed(gain)}。"))
    return pairs


def _verbs(gain: Figure) -> tuple[str, str]:
    return {1: ("raises", "上升"), -1: ("lowers", "下降"), 0: ("does not show to move", "看不出變化")}[gain.side]


def _against_others(labels: Mapping[str, str], values: Values, best: Mapping[str, Key]) -> list[tuple[str, str]]:
    """Each two methods whose truth parts; and in one sentence those that cannot be told apart."""
    pairs, alike = [], []
    for one, other in combinations(best, 2):
        gap = values.figure(best[one], "truth", best[other], COMPARING)
        if gap is None:
            continue
        if not gap.side:
            alike.append((labels[one], labels[other]))
            continue
        more, less = (one, other) if gap.side > 0 else (other, one)
        gap = values.figure(best[more], "truth", best[less], COMPARING)
        pairs.append(
            (
                f"{labels[more]} has more truth than {labels[less]}: {_signed(gap)}.",
                f"{labels[more]} 的真相分數高於 {labels[less]}：{_signed(gap)}。",
            )
        )
    if alike:
        english = "; ".join(f"{one} and {other}" for one, other in alike)
        chinese = "；".join(f"{one} 與 {other}" for one, other in alike)
        pairs.append((f"No difference in truth shows between {english}.", f"看不出真相分數的差別：{chinese}。"))
    return pairs


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
                f"{entry.name}, {way}: the reward model's score rises ({_signed(score)}) while the truth falls "
                f"({_signed(truth)}): the reward model is being fooled.",
                f"{entry.name}，{way}：獎勵分數上升（{_signed(score)}），真相卻下降（{_signed(truth)}）：獎勵模型被騙了。",
            ))  # fmt: skip
    return pairs


def _signed(figure: Figure) -> str:
    low, high = figure.interval or (figure.value, figure.value)
    return f"{figure.value:+.3f} ({low:+.3f} to {high:+.3f})"
