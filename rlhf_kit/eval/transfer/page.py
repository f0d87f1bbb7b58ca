"""The table in three forms: on the terminal, as Markdown, and as a page with a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as Grid

from rlhf_kit.escaping import html, markdown_row
from rlhf_kit.escaping import markdown as escaped
from rlhf_kit.eval.transfer.config import QANET, Row
from rlhf_kit.eval.transfer.table import Figure, Report, of_test
from rlhf_kit.eval.transfer.words import NOTE, TRIAL, VERDICTS, percent, sentences
from rlhf_kit.pages.shell import document, link, number, section, table, zh
from rlhf_kit.terminal.console import Console

HEAD = ("model 模型", "pre-trained on 預訓練", "fine-tuned on 微調")
GUESS, HUMAN = "guessing an answer of the right type 同類型亂猜", "human 人"
STYLE = """<style>
.heat td{background:color-mix(in srgb,var(--blue) calc(var(--f1)*.55%),transparent)}
.heat td,.heat th{vertical-align:top}.heat small{display:block;color:var(--soft);white-space:nowrap}
.heat td.none{background:none;color:var(--soft)}
</style>"""
Column = tuple[str, str]  # a test and one of its scorers


def columns(report: Report) -> list[Column]:
    return [(test.name, scorer) for test in report.table.tests for scorer in test.scorers]


def rows(report: Report) -> list[Row]:
    """Those of which something is measured, in the table's order."""
    measured = {figure.row for figure in report.figures}
    return [row for row in report.table.rows if row.name in measured]


def named(row: Row) -> tuple[str, str, str]:
    """The cells under `HEAD`."""
    nothing = row.from_scratch or row.model == QANET
    return row.name, "nothing 無" if nothing else row.pretrained_on or "–", " + ".join(row.fine_tuned_on)


def figure_of(report: Report, row: str, column: Column) -> Figure | None:
    return next((one for one in report.figures if (one.row, one.test, one.scorer) == (row, *column)), None)


def below(report: Report) -> list[tuple[str, dict[Column, tuple[float, float]]]]:
    """What stands under the rows: (name, column -> EM and F1) of guessing and of people, where they are known."""
    firsts = {test.name: (test.name, test.scorers[0]) for test in report.table.tests}
    guesses = {firsts[test]: (score.em, score.f1) for test, score in report.guesses.items()}
    people = {firsts[test]: (human["em"], human["f1"]) for test, human in report.humans.items()}
    published = {firsts[one.name]: one.published_human for one in report.table.tests if one.published_human}
    lines = [(GUESS, guesses), (HUMAN, people), (f"{HUMAN}, published 論文", published)]
    return [(name, line) for name, line in lines if line]


def legend(report: Report) -> list[str]:
    """Of each column its data, scorer and counts."""
    seen = {(one.test, one.scorer): one.n for one in report.figures}
    entries = []
    for column, n in seen.items():
        test = of_test(report.table, column[0])
        counts = f"{n['questions']} questions, {n['passages']} passages, {n['references']} references"
        entries.append(f"{test.name}: {test.source} ({test.split}), scorer {column[1]}, {counts}")
    return entries


# --- the terminal and Markdown --------------------------------------------------------------------------------------


def lines(report: Report) -> list[list[str]]:
    """Head and rows as text: EM / F1 with its interval, and the published figures beside."""
    marked = {(one.test, one.scorer) for one in report.figures if one.published}
    head = [*HEAD]
    for column in columns(report):
        head += [f"{column[0]} EM / F1 ({column[1]})", *["published 論文"] * (column in marked)]
    table = [head]
    for row in rows(report):
        table.append([*named(row)])
        for column in columns(report):
            one = figure_of(report, row.name, column)
            table[-1].append("–" if one is None else f"{one.em.value:.1f} / {percent(one.f1)}")
            table[-1] += [_pair(one.published if one else None)] * (column in marked)
    for name, known in below(report):
        table.append([name, "", ""])
        for column in columns(report):
            table[-1] += [_pair(known.get(column)), *[""] * (column in marked)]
    return table


def _pair(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.1f} / {pair[1]:.1f}"


def notes(report: Report) -> list[str]:
    seeds = ", ".join(map(str, report.table.seeds))
    return [*legend(report), f"seeds 亂數種子: {seeds}", *NOTE, *([] if report.reportable else [TRIAL])]


def markdown(report: Report) -> str:
    head, *body = lines(report)
    marks = "| --- " * len(HEAD) + "| ---: " * (len(head) - len(HEAD)) + "|"
    shown = "\n".join([markdown_row(head), marks, *map(markdown_row, body)])
    items = "\n".join(f"* {escaped(english)} {escaped(chinese)}" for english, chinese in sentences(report))
    small = "\n".join(f"* {escaped(note)}" for note in notes(report))
    return f"{shown}\n\n{items}\n\n{small}\n"


def show(report: Report, console: Console) -> None:
    head, *body = lines(report)
    grid = Grid(box=None, pad_edge=False)
    for at, name in enumerate(head):
        grid.add_column(name, justify="right" if at >= len(HEAD) else "left", overflow="fold")
    for cells in body:
        grid.add_row(*cells)
    console.print(grid)
    for line in [line for pair in sentences(report) for line in pair] + notes(report):
        console.tell(line)


# --- the page -------------------------------------------------------------------------------------------------------


def page(report: Report, foot: Sequence[str]) -> str:
    """`foot`: what stands below it."""
    paragraphs = "".join(f'<p class="result">{html(one)}<br>{zh(html(two))}</p>' for one, two in sentences(report))
    words = "F1, darker where it is higher; below it exact match, and what was published. 顏色越深 F1 越高。"
    remarks = "".join(f"<li>{html(note)}</li>" for note in notes(report))
    body = [
        f"<h1>Cross-lingual transfer of reading {zh('閱讀理解的跨語言遷移')}</h1>",
        f'<p class="soft">{html(report.name)}</p>{STYLE}',
        paragraphs,
        section(("The table", "總表"), words, _heat_map(report), f'<ul class="soft">{remarks}</ul>', grid="results"),
        section(("The published order", "論文的順序"), "", _order_table(report), grid="results"),
        section(("Errors, cell by cell", "各格的錯誤"), "", _links(report), grid="results"),
    ]
    return document("rlhf_kit: cross-lingual transfer 跨語言遷移", body, foot)


def _heat_map(report: Report) -> str:
    head = "".join(f'<th scope="col">{html(name)}</th>' for name in HEAD)
    head += "".join(f'<th scope="col">{html(test)}<small>{html(by)}</small></th>' for test, by in columns(report))
    body = ""
    for row in rows(report):
        first, *names = (html(name) for name in named(row))
        cells = "".join(_heat_cell(figure_of(report, row.name, column)) for column in columns(report))
        body += f'<tr><th scope="row">{first}</th>{"".join(f"<th>{name}</th>" for name in names)}{cells}</tr>'
    for name, known in below(report):
        cells = "".join(_below_cell(known.get(column)) for column in columns(report))
        body += f'<tr><th scope="row" colspan="{len(HEAD)}">{html(name)}</th>{cells}</tr>'
    return f'<div class="scroll heat"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _heat_cell(one: Figure | None) -> str:
    if one is None:
        return '<td class="none">–</td>'
    small = [f"EM {percent(one.em)}", f"seeds {', '.join(map(str, one.seeds))}"]
    small += [f"published {_pair(one.published)}"] if one.published else []
    lines = "".join(f"<small>{html(line)}</small>" for line in small)
    return f'<td style="--f1:{one.f1.value:.1f}"><b>{html(percent(one.f1))}</b>{lines}</td>'


def _below_cell(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return '<td class="none">–</td>'
    em, f1 = pair
    return f'<td style="--f1:{f1:.1f}">{f1:.1f}<small>EM {em:.1f}</small></td>'


def _order_table(report: Report) -> str:
    if not report.orders:
        return ""
    head = ["pair 兩列", "test 測試", "published 論文", "here 這裡", ""]
    body = [
        [
            html(f"{order.better} − {order.worse}"), html(order.test), number(order.published, "+.1f"),
            html(percent(order.difference, "+.1f")), f"{order.verdict} {zh(VERDICTS[order.verdict])}",
        ]
        for order in report.orders
    ]  # fmt: skip
    return table(head, body)


def _links(report: Report) -> str:
    """To the page of each cell and test: figures by kind of question, and errors marked in their passages."""
    found: dict[tuple[str, int], list[str]] = {}
    for figure in report.figures:
        for seed in figure.seeds:
            tests = found.setdefault((figure.row, seed), [])
            tests += [figure.test] * (figure.test not in tests)
    items = ""
    for (row, seed), tests in found.items():
        links = " · ".join(link(f"{row}/seed-{seed}/{test}/report.html", test) for test in tests)
        items += f"<li>{html(row)}, seed {seed}: {links}</li>"
    return f"<ul>{items}</ul>" if items else ""
