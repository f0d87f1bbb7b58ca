"""Text is never markup: what a terminal, Markdown and HTML would take for more is shown as it stands."""

import io
import json
import logging
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from rlhf_kit import demo, escaping
from rlhf_kit.cli import main
from rlhf_kit.pages.shell import link
from rlhf_kit.processes import quiet
from rlhf_kit.stages.card import merged_card
from rlhf_kit.terminal.console import Console, folded

HOSTILE = (
    "[/INST] [bold]x[i][/bold] :smile: \x1b[2J\x9b1m\r\u202eabc\u2066 \x00\x07\x7f <script>alert(1)</script> `code` "
    "a|b ](javascript:alert(1)) **b** _i_ ~~s~~ $x$ www.a.b https://a.b a@b.c &amp; \\| \ud83d \u2028 # h\n\nnext"
)
MOVES = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def test_by_hand():
    assert escaping.terminal("a\x1b[2Jb\r\nc\rd\u202e\ud83d\te") == "a\\u001b[2Jb\nc\\u000dd\\u202e\\ud83d\te"
    assert (
        escaping.html("<a href=\"x\" title='y'>&\x1b")
        == "&lt;a href=&quot;x&quot; title=&#x27;y&#x27;&gt;&amp;\\u001b"
    )
    assert (
        escaping.markdown("- *a*|`b`\n<i> [x](javascript:y)")
        == "\\- \\*a\\*\\|\\`b\\` &lt;i&gt; \\[x\\](javascript:y)"
    )
    assert escaping.markdown("+5 a_b _c_") == "+5 a_b \\_c\\_"
    assert escaping.markdown_row(["a|b", 1.5]) == "| a\\|b | 1.5 |"
    assert escaping.terminal("玉山 — naïve 👩‍👩‍👧 שלום") == "玉山 — naïve 👩‍👩‍👧 שלום"  # what is only text stays


@given(st.text(alphabet=st.characters(codec=None) | st.sampled_from(HOSTILE)))
@example("a line\nand the next")
def test_nothing_is_left_that_moves_or_marks(text):
    shown = [escape(text) for escape in (escaping.terminal, escaping.html, escaping.markdown)]
    assert not any(MOVES.search(form) for form in shown)
    assert not re.search("[<>\"']", shown[1]) and not re.search(r"[<>\n]", shown[2])
    unescaped = re.sub(r"\\[^\w\s]", "", shown[2])
    assert not re.search(r"[*`\[\]|]|://", unescaped)
    assert escaping.terminal(shown[0]) == shown[0]
    "".join(shown).encode()


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5))
def test_json_stays_the_same_json(value):
    assert json.loads(escaping.terminal(json.dumps(value, ensure_ascii=False))) == value


def test_a_console_shows_text_as_it_stands():
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE, soft_wrap=True)
    console.print(table)
    console.rule(HOSTILE)
    said = console.file.getvalue()
    assert not MOVES.search(said)
    assert said.count("[/INST] [bold]x[i][/bold] :smile: \\u001b[2J") == 5


def test_lines_are_broken_beside_chinese_letters_and_in_no_name():
    told = "sft 比 base：進步：answers-right、answers-truth；退步（對齊稅）：sums-0-shot、「text」。 95 % of it"
    for width in (20, 37, 80, 400):
        lines = folded(told, width)
        assert max(map(cell_len, lines)) <= width and (width < 400 or lines == [told])
        assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", told)
        assert not [line for line in lines if line[0] in "，。、；：）」" or line[-1] in "（「"]
        assert all(sum(name in line for line in lines) == 1 for name in ("answers-right", "sums-0-shot"))
    assert folded("", 5) == [""] and folded("abcdefgh ij", 5) == ["abcdefgh", "ij"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_paragraph_is_whole_for_who_reads_it_by_program(is_terminal):
    console = Console(file=io.StringIO(), width=20, force_terminal=is_terminal, color_system=None)
    console.tell("[b]x[/b] \x1b[2J a long line of words")
    said = console.file.getvalue()
    assert not MOVES.search(said) and "[b]x[/b] \\u001b[2J" in said and said.count("\n") == 1 + is_terminal


@pytest.mark.parametrize(
    "words", [[], ["eval"], ["eval", "coqa"], ["eval", "coqa", "--limit"], ["score", "--batch_size"]]
)
def test_what_was_typed_is_escaped_in_complaints(words, capsys):
    assert main([*words, HOSTILE]) == 2
    said = capsys.readouterr().err
    assert re.search(r"\\(u00|x)1b\[2J", said) and not MOVES.search(said)


def test_logs_are_escaped():
    quiet()
    record = logging.LogRecord("rlhf_kit", logging.WARNING, "", 0, "%s", (HOSTILE,), None)
    handlers = [logging.lastResort, *transformers.utils.logging.get_logger("transformers").handlers]
    assert len(handlers) > 1 and not any(MOVES.search(handler.format(record)) for handler in handlers)


def test_without_colours_where_they_are_not_wanted(monkeypatch):
    shown = []
    for wanted in ("", "1"):
        monkeypatch.setenv("NO_COLOR", wanted)
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
        console.print(Text("x", "cyan"))
        shown.append(console.file.getvalue())
    assert shown == ["\x1b[36mx\x1b[0m\n", "x\n"]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", ["javascript:alert(1)", "a b/ü?#.html", "data:text/html,x", '"><script>'])
def test_a_link_leads_beside_the_page(name):
    page = Tags(link(f"{name}/report.html", name))
    (target,) = page.links
    assert page.found == ["a"] and "".join(page.words) == name
    assert not re.match(r"[a-z]+:", target) and not re.search('[#?<>"]', target)


def summary():
    answer = {"text": HOSTILE, "truth": 1.0, "score": 0.5}
    named = {"prompt": HOSTILE, "chosen": "drawn", "language": "en"}
    stage = {"truth": 1.0, "correct": 1.0, "reward_model_score": 1.0, "kl": 0.0, "win_rate_vs_sft": 0.5}
    return {
        "samples": [{**named, "answers": dict.fromkeys(demo.COLUMNS, answer)}],
        "stages": dict.fromkeys(demo.COLUMNS, stage),
        "reward_model": {"accuracy": 0.8, "accuracy_ceiling": 0.9},
        "seconds": {"total": 1.0},
    }


def test_the_demos_answers_are_text(tmp_path, capsys):
    page = demo.samples_page(summary())
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert page.count("\\[/INST\\] \\[bold\\]x\\[i\\]") == 5  # the prompt and four answers
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows} == {5} and len(rows) == 6
    assert not MOVES.search(page) and "<script" not in page and len(page.splitlines()) == 12
    demo.show(summary(), tmp_path / "[INST] \x1b[2J")
    said = capsys.readouterr().out
    assert not MOVES.search(said) and "[/INST]" in said and "x[i]" in said


def test_a_card_holds_names_as_text():
    card = merged_card(HOSTILE, HOSTILE)
    assert "<script" not in card.partition("\n---\n")[2] and not MOVES.search(card)


LEAVES = """
import sys
from rlhf_kit.terminal import outlive_readers
outlive_readers()
for number in range(20000):
    print(f"line {number}")
print("\u7389\u5c71 \\ud83d", file=sys.stderr)
sys.exit(3)
"""


def test_a_reader_who_leaves_ends_nothing():
    """`| head`: no traceback, nor at Python's end; letters that the encoding lacks are written by number."""
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait() == 3 and said == "\\u7389\\u5c71 \\ud83d\n"
