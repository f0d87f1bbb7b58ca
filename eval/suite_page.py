"""The stage report: one table of a suite's figures, as text, as Markdown and as a page, and what it says in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Column, Table

from rlhf_kit.charts import is_number, svg_bars
from rlhf_kit.eval.suite import Entry
from rlhf_kit.page import document, number, section, table, zh

Interval = tuple[float, float] | None
COLOURS = ("grey", "blue", "green", "ochre", "red", "purple")
GAINED, LOST = "gained", "lost"
MARKS = {GAINED: " ▲", LOST: " ▼", "": ""}
HEAD = "measure 項目"
NOTE = (
    "In parentheses 95 % intervals. ▲ gained, ▼ lost: the interval of the paired difference leaves out 0. "
    "括號內為 95 % 信賴區間；▲ 進步、▼ 退步：成對差距的區間不含 0。"
)
GUESS = "guessing an answer of the right type scores 猜同類的答案得"
TRIAL = "--limit was given: no result to report. 只評了一部分，不可當成結果。"


@dataclass(frozen=True)
class Value:
    """A model's figure in an entry, with its 95 % interval (None where unknown), of how many items.

    `guess`: what an answer of the right type scores (`eval/type_guess.py`); None where it is not known.
    """

    model: str
    entry: str
    value: float | None
    interval: Interval
    items: int
    guess: float | None = None


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
    found = []
    names = list(report.models)
    for before, model in pairwise(names):
        of_stage = [change for change in report.changes if change.model == model]
        sides = {side: [change.entry for change in of_stage if change.verdict == side] for side in (GAINED, LOST)}
        gained, lost = (", ".join(sides[side]) or "nothing that shows" for side in (GAINED, LOST))
        win, loss = ("、".join(sides[side]) or "看不出來" for side in (GAINED, LOST))
        tax, tax_zh = (" (the alignment tax)", "（對齊稅）") if sides[LOST] else ("", "")
        found.append(
            (
                f"{model} against {before}: gained {gained}; lost {lost}{tax}.",
                f"{model} 比 {before}：進步：{win}；退步{tax_zh}：{loss}。",
            )
        )
    return found


def head(report: Report) -> list[str]:
    names = list(report.models)
    return [*names, *(f"{after} − {before}" for before, after in pairwise(names))]


def rows(report: Report) -> list[tuple[str, list[str]]]:
    """A row for each entry: its name, the cells under `head`."""
    values = {(value.model, value.entry): value for value in report.values}
    changes = {(change.model, change.entry): change for change in report.changes}
    found = []
    for entry in report.entries:
        of_entry = [values[name, entry.name] for name in report.models]
        seen = [value.value for value in of_entry] + [bound for value in of_entry for bound in value.interval or ()]
        large = max(map(abs, filter(is_number, seen)), default=0) >= 10  # percentages, not bits per byte
        form = ".1f" if large else ".3f"
        cells = [number(value.value, form) + _bounds(value.interval, form) for value in of_entry]
        stages = [changes[name, entry.name] for name in list(report.models)[1:]]
        cells += [_difference(change, entry, form) for change in stages]
        found.append((f"{entry.name}: {figure(entry)}, n {of_entry[0].items}", cells))
    return found


def figure(entry: Entry) -> str:
    """ "f1 ↑": the figure, and where better is."""
    return f"{' '.join(filter(None, [entry.group, entry.figure]))} {'↑' if entry.higher_is_better else '↓'}"


def _difference(change: Change, entry: Entry, form: str) -> str:
    of_figure = change.score == entry.figure
    between = _bounds(change.interval, f"+{form if of_figure else '.2f'}", "" if of_figure else f"{change.score} ")
    return number(change.difference, f"+{form}") + between + MARKS[change.verdict]


def _bounds(interval: Interval, form: str, name: str = "") -> str:
    return f" ({name}{number(interval[0], form)} to {number(interval[1], form)})" if interval else ""


def notes(report: Report) -> list[str]:
    """What else has to be known."""
    told = [f"{change.model}, {change.entry}: not paired. {change.note}" for change in report.changes if change.note]
    guesses = {value.entry: value.guess for value in report.values if value.guess is not None}
    told += [f"{name}: {GUESS} {number(value, '.1f')}" for name, value in guesses.items()]
    return [NOTE] * (len(report.models) > 1) + told + [TRIAL] * (not report.reportable)


# --- the three forms ------------------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """On the terminal, where a cell's parts stand below one another."""
    shown = Table(Column(HEAD, overflow="fold"), box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for name in head(report):
        shown.add_column(name, justify="right", overflow="fold")
    for name, cells in rows(report):
        shown.add_row(
            escape_markup(name.replace(": ", "\n", 1)), *(escape_markup(cell.replace(" (", "\n(")) for cell in cells)
        )
    console.print(shown, highlight=False)
    for line in [line for pair in sentences(report) for line in pair] + notes(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def markdown(report: Report) -> str:
    """The table, and below it the sentences and notes."""
    lines = [[HEAD, *head(report)], ["---"] + ["---:"] * len(head(report))]
    lines += [[name, *cells] for name, cells in rows(report)]
    shown = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    told = [f"* {english} {chinese}" for english, chinese in sentences(report)]
    return "\n\n".join(filter(None, [shown, "\n".join(told), *notes(report)])) + "\n"


def page(report: Report, facts: Sequence[str]) -> str:
    """The report as HTML: the sentences, the table, a picture of each entry. `facts` stand at the foot."""
    said = "".join(f'<p class="result">{escape(one)}<br>{zh(escape(two))}</p>' for one, two in sentences(report))
    cells = [[escape(name), *map(escape, row)] for name, row in rows(report)]
    stages = " → ".join(f"{name} ({path})" for name, path in report.models.items())
    body = [
        f"<h1>What each stage gained and lost {zh('各階段的得與失')}</h1>",
        f'<p class="soft">{escape(stages)}</p>',
        said,
        section(
            ("Figures", "指標"), "", table([HEAD, *map(escape, head(report))], cells), *map(_paragraph, notes(report)),
            grid="results",
        ),
        section(("Stage by stage", "逐階段"), "", *(_bars(report, entry) for entry in report.entries)),
        f"<footer>{escape(' · '.join(facts))}</footer>",
    ]  # fmt: skip
    return document("rlhf_kit: stages 各階段評測", body)


def _paragraph(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _bars(report: Report, entry: Entry) -> str:
    found = [value for value in report.values if value.entry == entry.name and is_number(value.value)]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(report.models)}
    bars = [(value.model, value.value, colours[value.model]) for value in found]
    title = f"{entry.name}: {figure(entry)}"
    return f"<figure><h3>{escape(title)}</h3>{svg_bars(title, bars, '')}</figure>" if bars else ""
