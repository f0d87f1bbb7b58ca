"""The stage report: one table of a suite's figures, as text, as Markdown and as a page, and what it says in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.table import Column, Table

from rlhf_kit.escaping import html, markdown_row
from rlhf_kit.escaping import markdown as escaped
from rlhf_kit.eval.suite.entries import Entry
from rlhf_kit.pages.charts import is_number, svg_bars
from rlhf_kit.pages.shell import document, link, number, section, table, zh
from rlhf_kit.terminal.console import Console

Interval = tuple[float, float] | None
COLOURS = ("grey", "blue", "green", "ochre", "red", "purple")
GAINED, LOST = "gained", "lost"
MARKS = {GAINED: " ▲", LOST: " ▼", "": ""}
HEAD = "measure 項目"
NOTE = (
    "In parentheses 95 % intervals. ▲ gained, ▼ lost against the stage before: the interval of the paired difference "
    "leaves out 0. 括號內為 95 % 信賴區間；▲ 進步、▼ 退步（與前一階段相比）：成對差距的區間不含 0。"
)
GUESS = "guessing an answer of the right type scores 猜同類的答案得"
TRIAL = "--limit was given: no result to report. 只評了一部分，不可當成結果。"


@dataclass(frozen=True)
class Value:
    """A model's figure in an entry, with its 95 % interval (None where unknown), of how many items.

    `guess`: what an answer of the right type scores (`eval/type_guess.py`); None where it is not known. `file`: its
    page, or its results where it has none, as the report links to it; "" where nothing is kept.
    """

    model: str
    entry: str
    value: float | None
    interval: Interval
    items: int
    guess: float | None = None
    file: str = ""


@dataclass(frozen=True)
class Change:
    """What a model's figure is above that of the stage before.

    Args:
        interval: 95 %, of the paired difference of `score`; None where the two cannot be paired.
        verdict: GAINED or LOST where the interval leaves out 0, "" elsewhere.
        note: why they cannot be paired; "" = they are.
    """

    before: str
    model: str
    entry: str
    difference: float | None
    score: str
    interval: Interval
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """`models`: names in the order of training, with their folders or hub ids. `reportable`: no --limit."""

    suite: str
    models: Mapping[str, str]
    entries: Sequence[Entry]
    values: Sequence[Value]
    changes: Sequence[Change]
    reportable: bool


def sentences(report: Report) -> list[tuple[str, str]]:
    """Of each stage after the first what it gained and lost, in English and Chinese."""
    pairs = []
    names = list(report.models)
    for before, model in pairwise(names):
        of_stage = [change for change in report.changes if change.model == model]
        sides = {side: [change.entry for change in of_stage if change.verdict == side] for side in (GAINED, LOST)}
        gained, lost = (", ".join(sides[side]) or "nothing that shows" for side in (GAINED, LOST))
        win, loss = ("、".join(sides[side]) or "看不出來" for side in (GAINED, LOST))
        tax, tax_zh = (" (the alignment tax)", "（對齊稅）") if sides[LOST] else ("", "")
        pairs.append(
            (
                f"{model} against {before}: gained {gained}; lost {lost}{tax}.",
                f"{model} 比 {before}：進步：{win}；退步{tax_zh}：{loss}。",
            )
        )
    return pairs


@dataclass(frozen=True)
class Layout:
    """What a table has room for: the differences, else their marks beside the figures; the figures' intervals."""

    differences: bool = True
    intervals: bool = True


WHOLE = Layout()
LAYOUTS = tuple(Layout(*has) for has in ((True, True), (True, False), (False, True), (False, False)))  # best first


def head(report: Report, layout: Layout = WHOLE) -> list[str]:
    names = list(report.models)
    return names + [f"{after} − {before}" for before, after in pairwise(names)] * layout.differences


def rows(report: Report, layout: Layout = WHOLE) -> list[tuple[str, list[str]]]:
    """A row for each entry: its name, the cells under `head`."""
    values = {(value.model, value.entry): value for value in report.values}
    changes = {(change.model, change.entry): change for change in report.changes}
    table = []
    for entry in report.entries:
        of_entry = [values[name, entry.name] for name in report.models]
        seen = [value.value for value in of_entry] + [bound for value in of_entry for bound in value.interval or ()]
        large = max(map(abs, filter(is_number, seen)), default=0) >= 10  # percentages, not bits per byte
        form = ".1f" if large else ".3f"
        stages = [changes[name, entry.name] for name in list(report.models)[1:]]
        marks = ["", *("" if layout.differences else MARKS[change.verdict] for change in stages)]
        cells = [
            number(value.value, form) + mark + (_bounds(value.interval, form) if layout.intervals else "")
            for value, mark in zip(of_entry, marks, strict=True)
        ]
        cells += [_difference(change, entry, form) for change in stages] * layout.differences
        table.append((f"{entry.name}: {figure(entry)}, n {of_entry[0].items}", cells))
    return table


def figure(entry: Entry) -> str:
    """ "f1 ↑": the figure, and where better is."""
    return f"{' '.join(filter(None, [entry.group, entry.figure]))} {'↑' if entry.higher_is_better else '↓'}"


def _difference(change: Change, entry: Entry, form: str) -> str:
    of_figure = change.score == entry.figure
    between = _bounds(change.interval, f"+{form if of_figure else '.2f'}", "" if of_figure else f"{change.score} ")
    return number(change.difference, f"+{form}") + between + MARKS[change.verdict]


def _bounds(interval: Interval, form: str, name: str = "") -> str:
    return f" ({name}{number(interval[0], form)} to {number(interval[1], form)})" if interval else ""


def meanings(report: Report) -> dict[str, str]:
    """What the entries tell, by name."""
    return {entry.name: entry.meaning for entry in report.entries if entry.meaning}


def notes(report: Report) -> list[str]:
    """What else has to be known."""
    lines = [f"{change.model}, {change.entry}: not paired. {change.note}" for change in report.changes if change.note]
    guesses = {value.entry: value.guess for value in report.values if value.guess is not None}
    lines += [f"{name}: {GUESS} {number(value, '.1f')}" for name, value in guesses.items()]
    return [NOTE] * (len(report.models) > 1) + lines + [TRIAL] * (not report.reportable)


# --- the three forms ------------------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """On the terminal: what it has columns for, a cell's parts below one another."""
    unbounded = console.options.update(max_width=10_000)
    for layout in LAYOUTS:
        grid = _grid(report, layout)
        if console.measure(grid, options=unbounded).maximum <= console.width:
            break
    console.print(grid, "")
    lines = [f"{name}: {meaning}" for name, meaning in meanings(report).items()]
    lines += [line for pair in sentences(report) for line in pair] + notes(report)
    for line in lines:
        console.tell(line)


def _grid(report: Report, layout: Layout) -> Table:
    grid = Table(Column(HEAD, overflow="fold"), box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for name in head(report, layout):
        grid.add_column(name, justify="right", overflow="fold")
    for entry, (name, cells) in zip(report.entries, rows(report, layout), strict=True):
        name = name.replace(": ", "\n", 1).replace(f"\n{entry.group} ", "\n", 1)  # its own name tells of which part
        grid.add_row(name, *(cell.replace(" (", "\n(") for cell in cells))
    return grid


def markdown(report: Report) -> str:
    """The table, and below it what the entries mean, the sentences and notes."""
    shown = [markdown_row([HEAD, *head(report)]), "| --- " + "| ---: " * len(head(report)) + "|"]
    shown += [markdown_row([name, *cells]) for name, cells in rows(report)]
    meant = [f"* {escaped(name)}: {escaped(meaning)}" for name, meaning in meanings(report).items()]
    items = [f"* {escaped(english)} {escaped(chinese)}" for english, chinese in sentences(report)]
    parts = ["\n".join(lines) for lines in (shown, meant, items)]
    return "\n\n".join(filter(None, [*parts, *map(escaped, notes(report))])) + "\n"


def page(report: Report, foot: Sequence[str]) -> str:
    """The report as HTML: the sentences, the table, a picture of each entry. `foot`: what stands below it."""
    paragraphs = "".join(f'<p class="result">{html(one)}<br>{zh(html(two))}</p>' for one, two in sentences(report))
    meant = "".join(f"<dt>{html(name)}</dt><dd>{html(meaning)}</dd>" for name, meaning in meanings(report).items())
    stages = " → ".join(f"{name} ({path})" for name, path in report.models.items())
    body = [
        f"<h1>What each stage gained and lost {zh('各階段的得與失')}</h1>",
        f'<p class="soft">{html(stages)}</p>',
        paragraphs,
        section(
            ("Figures", "指標"), "", table([HEAD, *map(html, head(report))], _linked_rows(report)),
            meant and f"<dl>{meant}</dl>", *map(_paragraph, notes(report)), grid="results",
        ),
        section(("Stage by stage", "逐階段"), "", *(_bars(report, entry) for entry in report.entries)),
    ]  # fmt: skip
    return document("rlhf_kit: stages 各階段評測", body, foot)


def _linked_rows(report: Report) -> list[list[str]]:
    """The rows as HTML; a model's figure leads to what it was made of."""
    files = {(value.model, value.entry): value.file for value in report.values}
    found = []
    for entry, (name, cells) in zip(report.entries, rows(report), strict=True):
        of_models = zip([files[model, entry.name] for model in report.models], cells, strict=False)
        linked = [link(file, cell) if file else html(cell) for file, cell in of_models]
        found.append([html(name), *linked, *map(html, cells[len(linked) :])])
    return found


def _paragraph(text: str) -> str:
    return f'<p class="soft">{html(text)}</p>'


def _bars(report: Report, entry: Entry) -> str:
    values = [value for value in report.values if value.entry == entry.name and is_number(value.value)]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(report.models)}
    bars = [(value.model, value.value, colours[value.model]) for value in values]
    title = f"{entry.name}: {figure(entry)}"
    return f"<figure><h3>{html(title)}</h3>{svg_bars(title, bars, '')}</figure>" if bars else ""
