"""Pictures for the docs: the demo and its stage report on terminals of 80 and 120 columns, and the top of their pages.

python benchmarks/screens.py runs/demo docs/screens

The pages need Chromium or Chrome and a font with Chinese, such as Debian's `chromium` and `fonts-noto-cjk`.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import re
import shutil
import subprocess
import tempfile
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

from rich.cells import cell_len
from rich.terminal_theme import MONOKAI
from rich.text import Text

from rlhf_kit import demo
from rlhf_kit.escaping import html as escape
from rlhf_kit.eval.suite import page as suite_page
from rlhf_kit.eval.suite.entries import Entry
from rlhf_kit.eval.suite.page import Change, Report, Value
from rlhf_kit.terminal.console import Console
from rlhf_kit.training.progress import ProgressBar

WIDTHS = (80, 120)
CELL = 12.2  # of rich's picture
TITLES = {"demo": "rlhf-kit demo", "suite": "rlhf-kit eval suite"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGE_WIDTH, PAGE_SCALE = 1000, 1.25
PAGES = {  # picture: the page in the demo's folder, and the element above which the picture ends
    "report": ("report.html", "figure:nth-of-type(3)"),
    "suite": ("suite/report.html", "dl"),
    "compare": ("compare/report.html", "h2:nth-of-type(3)"),
}
# rich's own format, without the fonts that it would load from elsewhere.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-title {{ font-family: "DejaVu Sans", sans-serif; font-size: 16px }}
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", "Noto Sans Mono CJK TC", monospace;
font-size: {char_height}px; line-height: {line_height}px; }} {styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>{chrome}<g transform="translate({terminal_x}, {terminal_y})"
clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def show_bar(folder: Path, console: Console) -> None:
    """PPO's bar as it stood at its last log."""
    lines = (folder / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [row for row in map(json.loads, lines) if "kl" in row]
    steps = logged[-1]["step"]
    unseen = Console(file=io.StringIO(), width=console.width, force_terminal=True)  # where it moves
    bar, state = ProgressBar(unseen), SimpleNamespace(is_world_process_zero=True, max_steps=steps, global_step=0)
    bar.on_train_begin(None, state, None)
    shown, seconds = bar.progress, logged[-1]["time"]
    shown.bar.stop()
    shown.bar.tasks[0].start_time = shown.bar.get_time() - seconds
    shown.bar.update(shown.task, completed=steps, rate=f"{steps / seconds:.1f}/s")
    bar.on_log(None, state, None, logged[-1])
    console.print(shown.bar.get_renderable())


def show_demo(folder: Path, console: Console) -> None:
    """PPO's bar, and the tables at the end."""
    demo.console = console
    console.rule(Text(demo.TITLES["ppo"], "bold"), align="left")
    show_bar(folder, console)
    demo.show(json.loads((folder / "summary.json").read_text(encoding="utf-8")), Path("runs/demo"))


def show_suite(folder: Path, console: Console) -> None:
    found = json.loads((folder / "suite" / "suite.json").read_text(encoding="utf-8"))
    parts = {"entries": Entry, "values": Value, "changes": Change}
    told = {name: [kind(**row) for row in found[name]] for name, kind in parts.items()}
    report = Report(found["suite"], found["models"], **told, reportable=found["reportable"])
    suite_page.show(report, console)


def in_cells(picture: str) -> str:
    """The picture with wide letters two cells wide: rich gives them one, and crowds them."""
    return re.sub(
        r'(<text [^>]*)x="([\d.]+)" y="([\d.]+)" textLength="[\d.]+"([^>]*>)([^<]*)</text>', _placed, picture
    )


def _placed(text: re.Match) -> str:
    begin, left, y, end, words = text.groups()
    parts, at = [], float(left)
    for _, letters in groupby(html.unescape(words), cell_len):
        run = "".join(letters)
        width, shown = CELL * cell_len(run), escape(run).replace("\xa0", "&#160;")
        parts.append(f'{begin}x="{at:g}" y="{y}" textLength="{width:g}"{end}{shown}</text>')
        at += width
    return "".join(parts)


def show_page(browser: str, page: Path, end: str, picture: Path) -> None:
    """A picture of the page down to the element `end`, which a script finds in a copy of the page."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text"]
    script = f"document.title = document.querySelector('{end}').getBoundingClientRect().top - 8"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / page.name
        copy.write_text(page.read_text(encoding="utf-8") + f"<script>{script}</script>", encoding="utf-8")
        measured = [*command, f"--window-size={PAGE_WIDTH},1000", "--dump-dom", copy.as_uri()]
        content = subprocess.run(measured, check=True, capture_output=True, text=True).stdout
    height = int(float(re.search(r"<title>([\d.]+)</title>", content)[1]))
    size = [f"--window-size={PAGE_WIDTH},{height}", f"--force-device-scale-factor={PAGE_SCALE}"]
    subprocess.run(
        [*command, *size, f"--screenshot={picture}", page.resolve().as_uri()], check=True, capture_output=True
    )


def show_pages(folder: Path, output: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"No browser for the pictures of the pages: install one of {', '.join(BROWSERS)}.")
    for name, (page, end) in PAGES.items():
        if (folder / page).is_file():
            show_page(browser, folder / page, end, output.resolve() / f"{name}-page.png")
        else:
            print(f"{folder / page} is not there: no picture of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="a demo's folder")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, show in {"demo": show_demo, "suite": show_suite}.items():
        for width in WIDTHS:
            console = Console(record=True, width=width, force_terminal=True)
            show(options.demo, console)
            console.print()  # which rich would cut off
            title = f"{TITLES[name]}, {width} columns"
            picture = console.export_svg(title=title, theme=MONOKAI, code_format=FORMAT, unique_id=f"{name}-{width}")
            (options.output / f"{name}-{width}.svg").write_text(in_cells(picture), encoding="utf-8")
    show_pages(options.demo, options.output)


if __name__ == "__main__":
    main()
