"""The shell that every HTML page of the kit shares: style sheet, headings, tables; self-contained, no scripts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

from rlhf_kit.escaping import html
from rlhf_kit.pages import charts
from rlhf_kit.pages.charts import is_number
from rlhf_kit.storage import Folder

REPORT = "report.html"
MAIN, WHOLE = "<main>", "← the whole report 整份報告"
BACK = re.compile(rf'{MAIN}<p><a href="([^"]*)">{WHOLE}</a></p>')
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"PingFang TC","Noto Sans TC","Noto Sans CJK TC","Microsoft JhengHei",sans-serif}
main{max-width:1080px;margin:0 auto;padding:2rem 1rem 3rem}
h1{font-size:1.7rem;line-height:1.25;margin:0}h2{font-size:1.3rem;line-height:1.3;margin:2.8rem 0 .6rem}
h3{font-size:.98rem;line-height:1.4;margin:0}h1 [lang],h2 [lang]{font-weight:400;color:var(--soft);margin-left:.35em}
p{margin:.5rem 0;max-width:46rem}.soft,dd,footer{color:var(--soft);font-size:.9rem}
.result{font-size:1.15rem;max-width:none;border-left:4px solid var(--blue);padding:.1rem 0 .1rem 1rem;margin:1.2rem 0}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
figure:last-child:nth-child(odd){grid-column:1/-1}
.answers{gap:.7rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,220px),1fr))}
figure,.scroll,.sample{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:1rem}
.scroll{overflow-x:auto;padding:.3rem 1rem}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.5rem .7rem;border-bottom:1px solid var(--rule)}
tr:last-child>*{border-bottom:0}th:first-child{text-align:left;padding-left:0}thead th{font-size:.88rem;
line-height:1.3;vertical-align:top}thead [lang]{display:block;white-space:nowrap;font-weight:400;color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .9rem;margin:.8rem 0;font-size:.9rem}dd{margin:0}
.sample{margin-bottom:1rem}.sample h3{margin-bottom:.7rem;white-space:pre-wrap}
.sample .soft{font-weight:400}.answer{border-top:3px solid var(--c);padding-top:.35rem;font-size:.93rem}
.answer p{margin:.2rem 0;white-space:pre-wrap;overflow-wrap:anywhere}.answer b{color:var(--c);font-size:.85rem}
footer{margin-top:2.5rem;border-top:1px solid var(--rule);padding-top:.8rem}
@media(max-width:560px){dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}figure,.sample{padding:.75rem}
th,td{padding:.5rem .35rem}}
"""


def document(title: str, parts: Iterable[str], foot: Iterable[str] = ()) -> str:
    """A whole page with `parts` one below the other; charts.py's pictures find their colours in it. `foot`: texts."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{title}</title><style>{charts.STYLE}{STYLE}</style>"
    foot = html(" · ".join(foot))
    body = "".join(parts) + (foot and f"<footer>{foot}</footer>")
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{MAIN}{body}</main></body></html>\n'


def write_page(files: Folder, name: str, text: str) -> Path:
    """A page whole or not at all; one that led back to the whole that it is a part of still does.

    Raises UserError where it would replace a file that is no page of ours.
    """
    path = files.path / name
    link = BACK.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    is_there = link is not None and (path.parent / unquote(link[1])).is_file()
    return files.write(name, text.replace(MAIN, link[0], 1) if is_there else text)


def number(value: object, form: str) -> str:
    """A number as a page shows it, with a real minus sign; a dash for what is none."""
    return format(value, form).replace("-", "−") if is_number(value) else "–"


def zh(words: str) -> str:
    return f'<span lang="zh-Hant">{words}</span>'


def link(path: str, words: str) -> str:
    """A link to a file beside the page: however a name reads, it is no address."""
    return f'<a href="{html(quote(path))}">{html(words)}</a>'


def link_back(page: Path, by: str, whole: Path, words: str = WHOLE) -> None:
    """Let a page lead to that of the `whole` that it is a part of, which is there by now; by other `words` to a part.

    `by`: the command that wrote it. A page that is not there, or not as it was left, stays as it is.
    """
    pages = Folder(page.parent, by)
    if not page.is_file() or pages.foreign([page.name]):
        return
    back = link(Path(os.path.relpath(whole, page.parent)).as_posix(), words)
    text = page.read_text(encoding="utf-8")
    if back not in text:
        pages.write(page.name, text.replace(MAIN, f"{MAIN}<p>{back}</p>", 1))


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table of ready-made cells; the first of each row names it."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: tuple[str, str], words: str, *parts: str, grid: str = "grid") -> str:
    """A heading, English and Chinese, with its parts; nothing when all parts are empty."""
    head = f"<h2>{title[0]} {zh(title[1])}</h2>" + (words and f'<p class="soft">{words}</p>')
    return f'{head}<div class="{grid}">{"".join(parts)}</div>' if any(parts) else ""
