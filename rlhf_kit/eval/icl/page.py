"""The curve of learning in context: accuracy against model size for each number of shots, beside GPT-3's."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from rlhf_kit.escaping import html
from rlhf_kit.eval.icl.tasks import Task
from rlhf_kit.eval.items import Results
from rlhf_kit.pages.charts import Line, figure
from rlhf_kit.pages.shell import document, number, section, table, zh
from rlhf_kit.terminal.console import Console

# Brown et al. 2020, Table H.1: the paper's results, in percent, by task, number of shots and size.
TABLE = Path(__file__).with_name("gpt3_table_h1.csv")
SIZES = {
    "Small(125M)": 125e6, "Med(350M)": 350e6, "Large(760M)": 760e6, "XL(1.3B)": 1.3e9, "2.7B": 2.7e9, "6.7B": 6.7e9,
    "13B": 13e9, "175B": 175e9,
}  # fmt: skip
COLOURS = ("blue", "green", "ochre", "red", "purple")
MEAN = "mean"
IN_TURNS = "Asked in turns, by the chat template. 以對話格式提問。"


@dataclass(frozen=True)
class Point:
    """Accuracy of a model on a task with K shots, in percent, with its 95 % interval where it is known."""

    task: str
    shots: int
    accuracy: float
    interval: tuple[float, float] | None
    items: int | None


@dataclass
class Curve:
    """What was measured of one model."""

    model: str
    parameters: int
    points: list[Point] = field(default_factory=list)


def points(found: Results) -> list[Point]:
    """Of each task and number of shots, and of the mean over tasks where there are several."""
    of_tasks = []
    for group, measured in found.groups.items():
        task, _, shots = group.rpartition("/")
        interval = measured.intervals["acc"]
        of_tasks.append(Point(task, _count(shots), measured.scores["acc"], interval, measured.n["items"]))
    order = list(found.settings.options["tasks"])
    of_tasks.sort(key=lambda point: (order.index(point.task), point.shots))
    if len(order) < 2:
        return of_tasks
    shots = sorted({point.shots for point in of_tasks})
    means = [(count, f"acc_{count}_shot") for count in shots]
    return of_tasks + [
        Point(MEAN, count, found.scores[name], found.measured.intervals[name], found.measured.n["items"])
        for count, name in means
    ]


def _count(shots: str) -> int:
    """ "8-shot" -> 8"""
    return int(shots.removesuffix("-shot"))


def published(tasks: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """GPT-3's mean accuracy over tasks of Table H.1: "zero", "one", "few" -> [(parameters, percent)], small to large.

    Raises:
        KeyError: for a task that is not in the table.
    """
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = {(row["task"], row["metric"], row["shots"]): row for row in csv.DictReader(file)}
    return {
        shots: [
            (parameters, sum(float(rows[task, "acc", shots][size]) for task in tasks) / len(tasks))
            for size, parameters in SIZES.items()
        ]
        for shots in ("zero", "one", "few")
    }


def curve_csv(curves: Sequence[Curve]) -> str:
    """A line for each model, task and number of shots; accuracy and its interval in percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "parameters", "task", "shots", "accuracy", "low", "high", "items"])
    for curve in curves:
        for point in curve.points:
            low, high = point.interval or ("", "")
            writer.writerow(
                [curve.model, curve.parameters, point.task, point.shots, point.accuracy, low, high, point.items]
            )
    return out.getvalue()


def show(curves: Sequence[Curve], console: Console, chat: bool = False) -> None:
    """The table on the terminal: a row for each task and number of shots, a column for each model."""
    shown = Table(title="Accuracy, % (95 % interval) 準確率與信賴區間", title_justify="left")
    shown.add_column("task 任務")
    shown.add_column("shots 範例數", justify="right")
    for curve in curves:
        shown.add_column(f"{curve.model}\n{_size(curve.parameters)}", justify="right", overflow="fold")
    for task, shots, cells in _rows(curves):
        shown.add_row(task, str(shots), *cells)
    console.print(shown)
    if chat:
        console.print(IN_TURNS)


def curve_page(curves: Sequence[Curve], tasks: Sequence[Task], limit: int | None, chat: bool = False) -> str:
    """The report: the mean over the declared tasks first, then each task, then the numbers. `chat`: asked in turns."""
    names = {task.name: [task.published] for task in tasks if task.published}
    if tasks and all(task.published for task in tasks):
        names[MEAN] = [task.published for task in tasks]
    measured = list(dict.fromkeys(point.task for curve in curves for point in curve.points))
    measured.sort(key=lambda task: task != MEAN)
    head = ["task 任務", "shots 範例數", *(f"{html(c.model)} ({_size(c.parameters)})" for c in curves)]
    rows = [[html(task), str(shots), *cells] for task, shots, cells in _rows(curves)]
    words = (
        "Solid: measured here. Dashed: GPT-3 as published (Brown et al. 2020, Table H.1; four beams, other models and "
        "its own items), a yardstick and not a result of this run. 實線為本次測得，虛線為 GPT-3 論文數字。"
    )
    body = [
        f"<h1>Learning from examples in the prompt {zh('情境學習')}</h1>",
        "" if limit is None else f"<p><b>--limit {limit}: no result to report. 只評了一部分，不可當成結果。</b></p>",
        f"<p>{IN_TURNS}</p>" * chat,
        section(("Accuracy against size", "準確率與模型大小"), words, *(_picture(t, curves, names) for t in measured)),
        section(
            ("Numbers", "數字"),
            "With 95 % intervals over items. 括號內為信賴區間。",
            table(head, rows),
            grid="results",
        ),
    ]
    return document("rlhf_kit: in-context learning 情境學習", body)


def _picture(task: str, curves: Sequence[Curve], names: dict[str, list[str]]) -> str:
    """log10 of the parameters on the x axis: charts are linear. A model alone is a dot."""
    of_shots: dict[int, list[tuple[float, float]]] = {}
    for curve in sorted(curves, key=lambda curve: curve.parameters):
        for point in curve.points:
            if point.task == task:
                of_shots.setdefault(point.shots, []).append((math.log10(curve.parameters), point.accuracy))
    lines = [
        Line(f"{shots} shots", COLOURS[at % len(COLOURS)], points)
        for at, (shots, points) in enumerate(sorted(of_shots.items()))
    ]
    if task in names:
        colours = {"zero": "blue", "one": "green", "few": "ochre"}
        for shots, points in published(names[task]).items():
            placed = [(math.log10(parameters), percent) for parameters, percent in points]
            lines.append(Line(f"GPT-3, {shots}", colours[shots], placed, dashed=True))
    return figure(task, lines, "accuracy, % 準確率", "log₁₀ of parameters 參數量")


def _rows(curves: Sequence[Curve]) -> list[tuple[str, int, list[str]]]:
    by_key = {(c.model, point.task, point.shots): point for c in curves for point in c.points}
    keys = list(dict.fromkeys((point.task, point.shots) for curve in curves for point in curve.points))
    return [(task, shots, [_cell(by_key.get((curve.model, task, shots))) for curve in curves]) for task, shots in keys]


def _cell(point: Point | None) -> str:
    if point is None:
        return "–"
    if point.interval is None:
        return number(point.accuracy, ".1f")
    low, high = point.interval
    return f"{number(point.accuracy, '.1f')} ({number(low, '.1f')}–{number(high, '.1f')})"


def _size(parameters: int) -> str:
    """ "4.4M" """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
