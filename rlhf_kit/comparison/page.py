"""The comparison in three forms: on the terminal, as Markdown, and as a page with two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as Grid

from rlhf_kit.comparison.config import CompareOptions
from rlhf_kit.comparison.figures import Figure, Row
from rlhf_kit.comparison.methods import Entry
from rlhf_kit.comparison.records import START, WORLD
from rlhf_kit.escaping import html, markdown_row
from rlhf_kit.escaping import markdown as escaped
from rlhf_kit.pages.charts import Line, figure
from rlhf_kit.pages.shell import document, number, section, table, zh
from rlhf_kit.terminal.console import Console

COLOURS = ("blue", "red", "green", "ochre", "purple", "ink")
NAMES = {
    "truth": ("truth", "真相"),
    "score": ("reward-model score", "獎勵分數"),
    "win": ("wins over the start", "勝過起點"),
    "kl": ("KL, nats", "KL"),
    "entropy": ("entropy, nats a token", "熵"),
    "length": ("tokens", "長度"),
    "correct": ("correct", "答對"),
}
ONE_SEED = (
    "One seed: the intervals know nothing of what other trainings give. 只有一個亂數種子：區間不含訓練的運氣。",
)
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
COSTS = {
    "training": ("training, FLOPs", "訓練計算量"),
    "answering": ("an answer, FLOPs", "每答計算量"),
    "compute": ("with all answers, FLOPs", "含所有回答"),
    "seconds": ("seconds", "秒"),
    "memory": ("peak memory, GiB", "記憶體峰值"),
}


STYLE = """<style>
.results td,.results th{padding:.45rem .4rem}
.results td{white-space:nowrap}.results small{display:block;color:var(--soft)}
.results .result{font-size:1rem;margin:.8rem 0}
</style>"""


@dataclass(frozen=True)
class Report:
    """`gaps`: the truth of one method less another's. `asked`: how many held-out prompts; `accuracy`: of a judge
    trained on people's rankings, on the others'."""

    options: CompareOptions
    entries: tuple[Entry, ...]
    rows: tuple[Row, ...]
    sentences: tuple[tuple[str, str], ...]
    gaps: Mapping[tuple[str, str], Figure]
    failed: Mapping[str, str]
    asked: int
    accuracy: float | None = None


def head(report: Report) -> list[tuple[str, str]]:
    """The columns behind the first, English and Chinese."""
    return [*(NAMES[name] for name in shown(report)), *((task, task) for task in report.options.tax), *COSTS.values()]


def shown(report: Report) -> list[str]:
    """The measures that somebody can tell."""
    return [name for name in NAMES if any(name in row.figures for row in report.rows)]


def label(row: Row, entries: Sequence[Entry]) -> str:
    if row.entry == START:
        return "start 起點"
    entry = next(entry for entry in entries if entry.name == row.entry)
    return f"{row.entry}, {entry.method.strength} {row.strength:g}"


def cells(row: Row, report: Report) -> list[str]:
    """Under `head`, as text: means over the seeds with their intervals."""
    parts = [_figure(row, name) for name in shown(report)]
    parts += [_figure(row, task) for task in report.options.tax]
    costs = [*map(flops, (row.training, row.answering, row.compute))]
    costs += [f"{row.seconds:.1f}", f"{row.memory / 2**30:.2f}"]
    return parts + costs


def _figure(row: Row, name: str) -> str:
    one = row.figures.get(name)
    if one is None:
        return "–"
    form = {"length": ".1f", "score": ".2f", "kl": ".2f"}.get(name, ".3f")
    return f"{number(one.value, form)}{_mark(row.gains.get(name))}{_bounds(one, form)}"


def _mark(gain: Figure | None) -> str:
    """Where the difference from the start shows."""
    return {1: " ▲", -1: " ▼", 0: ""}[gain.side] if gain is not None else ""


def _bounds(one: Figure, form: str) -> str:
    return f" ({number(one.interval[0], form)} to {number(one.interval[1], form)})" if one.interval else ""


def flops(count: float | None) -> str:
    """1.78 T.

    >>> flops(1.7812e12), flops(999.9e6), flops(124e6), flops(0), flops(None)
    ('1.78 T', '1.00 G', '124 M', '0', '–')
    """
    if not count:
        return "–" if count is None else "0"
    value, prefix = count, 0
    while value >= 999.5 and prefix < len(PREFIXES) - 1:
        value, prefix = value / 1000, prefix + 1
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {PREFIXES[prefix]}".strip()


def matrix(report: Report) -> tuple[list[str], list[list[str]]]:
    """The truth of the row's method less that of the column's; ▲, ▼: the interval leaves out 0. -> head, rows"""
    names = [entry.name for entry in report.entries if any(entry.name in pair for pair in report.gaps)]
    gap = {pair: f"{number(one.value, '+.3f')}{_mark(one)}{_bounds(one, '+.3f')}" for pair, one in report.gaps.items()}
    return ["truth: row − column 真相：列 − 欄", *names], [
        [one, *(gap.get((one, other), "") for other in names)] for one in names
    ]


def notes(report: Report) -> list[str]:
    """How it was made, and what its figures are."""
    options = report.options
    seeds = ", ".join(map(str, options.seeds))
    lines = [
        f"{report.asked} held-out prompts ({options.heldout_prompts}), seeds {seeds}. {report.asked} 個保留的提示，"
        f"亂數種子 {seeds}。",
        f"Truth: {judge(report)[0]} 真相：{judge(report)[1]}",
        f"Trials of each method's options before this table: {options.tuning_trials}, the same for all. "
        f"每個方法的調參次數相同：{options.tuning_trials}。",
        *(ONE_SEED if len(options.seeds) == 1 else ()),
        "In parentheses 95 % intervals over prompts and seeds; ▲ above, ▼ below the start: the interval of the paired "
        "difference leaves out 0. Of twenty such marks one is there by chance. 括號內為 95 % 區間；▲▼ "
        "表示與起點的成對差距不含 0，每二十個約有一個是碰巧。",
        "FLOPs are counted while a run computes: a forward 1, its backward 2, of every model that it has. KL of "
        "best-of-n is log n - (n - 1) / n; it trains nothing, and an answer costs n samples and their scores. "
        "計算量在執行時實際計數；best-of-n 不訓練，每個回答要抽 n 次並評分。",
    ]
    return lines + [f"{name}: not in the table, {fault} 不在表中" for name, fault in report.failed.items()]


def judge(report: Report) -> tuple[str, str]:
    """What stands for the truth, in English and Chinese."""
    options = report.options
    if options.truth == WORLD:
        return "computed by the embedded world (1 is best).", "由內建的世界計算（1 最好）。"
    if options.truth is not None:
        return f"in its place the scores of {options.truth}.", f"以 {options.truth} 的分數代替。"
    share = "" if report.accuracy is None else f", which orders {report.accuracy:.1%} of the other pairs as people did"
    zh_share = "" if report.accuracy is None else f"，對其餘排序的準確率 {report.accuracy:.1%}"
    source = options.truth_rankings
    return (
        f"in its place a reward model of its own, trained on people's held-out rankings {source}{share}.",
        f"以另一個獎勵模型代替，它只學人類的排序 {source}{zh_share}。",
    )


# --- the terminal and Markdown --------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """A table of figures and one of costs; intervals stand in table.md."""
    costs = len(COSTS)
    for title, part in (("Answers 回答", slice(None, -costs)), ("What it took 代價", slice(-costs, None))):
        grid = Grid(title=title, title_justify="left", box=None, pad_edge=False)
        grid.add_column("")
        for english, chinese in head(report)[part]:
            grid.add_column(
                english if english == chinese else f"{english}\n{chinese}", justify="right", overflow="fold"
            )
        for row in report.rows:
            grid.add_row(label(row, report.entries), *(cell.partition(" (")[0] for cell in cells(row, report)[part]))
        console.print(grid, "")
    for line in [line for pair in report.sentences for line in pair] + notes(report):
        console.tell(line)


def markdown(report: Report) -> str:
    top = [
        "method 方法",
        *(english if english == chinese else f"{english} {chinese}" for english, chinese in head(report)),
    ]
    lines = _markdown_table(top, [[label(row, report.entries), *cells(row, report)] for row in report.rows])
    claims = [f"* {escaped(english)} {escaped(chinese)}" for english, chinese in report.sentences]
    small = [f"* {escaped(note)}" for note in notes(report)]
    beside = _markdown_table(*matrix(report)) if report.gaps else []
    return "\n\n".join("\n".join(part) for part in (lines, claims, beside, small) if part) + "\n"


def _markdown_table(top: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [markdown_row(top), "| --- " + "| ---: " * (len(top) - 1) + "|", *map(markdown_row, rows)]


# --- the page -------------------------------------------------------------------------------------------------------


def page(report: Report, foot: Sequence[str]) -> str:
    """`foot`: what stands below it."""
    paragraphs = "".join(f'<p class="result">{html(one)}<br>{zh(html(two))}</p>' for one, two in report.sentences)
    top = [f"{html(english)}{zh(html(chinese)) if chinese != english else ''}" for english, chinese in head(report)]
    body = [[html(label(row, report.entries)), *map(_cell, cells(row, report))] for row in report.rows]
    beside, rows = matrix(report)
    gaps = table([*map(html, beside)], [[html(row[0]), *map(_cell, row[1:])] for row in rows]) if rows else ""
    halves = (slice(None, -len(COSTS)), slice(-len(COSTS), None))
    tables = [table(["method 方法", *top[half]], [[row[0], *row[1:][half]] for row in body]) for half in halves]
    remarks = "".join(f"<li>{html(note)}</li>" for note in notes(report))
    methods = " · ".join(entry.name for entry in report.entries)
    words = (
        "Each dot is a strength of a method, with the 95 % interval of its truth. 每點是一個強度，誤差線為 95 % 區間。"
    )
    parts = [
        f"<h1>Methods of preference tuning, side by side {zh('偏好微調方法的比較')}</h1>",
        f'<p class="soft">{html(methods)}</p>{STYLE}',
        section(("Truth against KL and against compute", "真相與 KL、計算量"), words, *pictures(report)),
        section(("What the intervals tell", "區間說明了什麼"), "", paragraphs, gaps, grid="results"),
        section(
            ("Figures", "數字"),
            "Answers, and what they took. 回答的品質，以及代價。",
            *tables,
            f'<ul class="soft">{remarks}</ul>',
            grid="results",
        ),
    ]
    return document("rlhf_kit: methods 方法比較", parts, foot)


def _cell(text: str) -> str:
    """Its interval below it."""
    value, _, bounds = text.partition(" (")
    return html(value) + (f"<small>({html(bounds)}</small>" if bounds else "")


def pictures(report: Report) -> list[str]:
    """Truth over KL, and truth over compute on a logarithmic axis."""
    named = {"kl": "KL to the start, nats 與起點的 KL", "compute": "FLOPs: training and all answers 計算量"}
    titles = {"kl": "Truth against KL 真相與 KL", "compute": "Truth against compute 真相與計算量"}
    return [
        figure(titles[axis], lines(report, axis), "truth 真相", named[axis], logarithmic=axis == "compute")
        for axis in named
    ]


def lines(report: Report, axis: str) -> list[Line]:
    """One line a method through its strengths, from left to right; the start is a dot."""
    curves = []
    colours = {entry.name: COLOURS[at % len(COLOURS)] for at, entry in enumerate(report.entries)}
    for name, colour in ({START: "grey"} | colours).items():
        of_entry = [row for row in report.rows if row.entry == name]
        placed = sorted((row for row in of_entry if _place(row, axis) is not None), key=lambda row: _place(row, axis))
        truths = [row.figures["truth"] for row in placed]
        points = [(_place(row, axis), truth.value) for row, truth in zip(placed, truths, strict=True)]
        bars = [truth.interval or (truth.value, truth.value) for truth in truths]
        curves.append(Line("start 起點" if name == START else name, colour, points, bars=tuple(bars)))
    return curves


def _place(row: Row, axis: str) -> float | None:
    if axis == "compute":
        return row.compute
    return row.figures["kl"].value
