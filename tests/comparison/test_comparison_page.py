"""The table and the page: both pictures, both languages, and no text of models or data is markup."""

import re

import numpy as np

from rlhf_kit.comparison.config import CompareOptions
from rlhf_kit.comparison.figures import BEFORE, Values, gaps, sentences
from rlhf_kit.comparison.methods import METHODS, Entry
from rlhf_kit.comparison.page import Report, cells, head, lines, markdown, notes, page
from rlhf_kit.comparison.records import START
from rlhf_kit.pages.charts import Line, powers, svg_lines
from tests.comparison.test_comparison_figures import alternating, measurement

ENTRIES = (Entry("ppo", METHODS["ppo"], (0.5, 0.1)), Entry("best_of_n", METHODS["best_of_n"], (2,)))


def report(**options) -> Report:
    truth = np.array(alternating(30))
    measurements = [
        measurement(START, None, 0, truth), measurement("ppo", 0.5, 0, truth + 0.2, kl=1.0, work=2e9),
        measurement("ppo", 0.1, 0, truth + 0.4, kl=3.0, work=3e9),
        measurement("best_of_n", 2, 0, truth + 0.1, kl=0.19),
    ]  # fmt: skip
    values = Values(measurements)
    keys = [BEFORE, ("ppo", 0.5), ("ppo", 0.1), ("best_of_n", 2)]
    options = CompareOptions("M", heldout_prompts="<b>|rows", tuning_trials=7, truth="world", seeds=[0], **options)
    between = gaps(values, ENTRIES)
    said = tuple(sentences(values, ENTRIES, [], between))
    rows, failed = tuple(map(values.row, keys)), {"ppo, seed 9": "<i>no room</i>"}
    return Report(options, ENTRIES, rows, said, between, failed, 30)


def test_a_page_has_two_pictures_and_both_languages():
    text = page(report(), ["commit abc"])
    assert "row − column" in text and "<small>(−0.300 to −0.300)</small>" in text
    assert text.count("<svg") == 2 and "Truth against KL 真相與 KL" in text and "10⁹" in text
    assert "<b>" not in text and "One seed" in text and "&lt;b&gt;|rows" in text and "&lt;i&gt;no room" in text
    assert "7, the same for all" in text and "每個方法的調參次數相同：7" in text
    assert "ppo (kl_coef 0.1) against the start: more truth" in text and "與起點相比：真相較高" in text


def test_lines_go_through_the_strengths_by_their_axis():
    by_kl, by_compute = (lines(report(), axis) for axis in ("kl", "compute"))
    assert [line.label for line in by_kl] == ["start 起點", "ppo", "best_of_n"]
    assert [x for x, _ in by_kl[1].points] == [1.0, 3.0] and len(by_kl[1].bars) == 2
    assert [x for x, _ in by_compute[1].points] == [2e9 + 300, 3e9 + 300]
    assert by_compute[2].points[0][0] == 300  # thirty answers of 10


def test_markdown_escapes_and_has_a_cell_for_every_column():
    text = markdown(report())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert len({*bars[:6]}) == 1 and bars[6:] == [4] * 4  # the policies, and two methods against each other
    assert rows[8] == "| ppo |  | +0.300 ▲ (+0.300 to +0.300) |"
    assert rows[9] == "| best_of_n | −0.300 ▼ (−0.300 to −0.300) |  |"
    assert "&lt;b&gt;\\|rows" in text


def test_cells_stand_under_their_heads():
    told = report()
    found = dict(zip([english for english, _ in head(told)], cells(told.rows[2], told), strict=True))
    assert found["truth"].startswith("1.067 ▲ (") and found["KL, nats"] == "3.00 ▲ (3.00 to 3.00)"
    assert found["training, FLOPs"] == "3.00 G" and found["an answer, FLOPs"] == "10.0"
    assert "correct" not in found and "entropy, nats a token" not in found


def test_what_stands_for_the_truth_is_said():
    judged = report(reward={}).options
    judged.truth, judged.truth_rankings = None, "people.db"
    other = Report(judged, (), (), (), {}, {}, 3, accuracy=0.75)
    assert any("people's held-out rankings people.db, which orders 75.0%" in note for note in notes(other))


def test_a_logarithmic_axis_has_round_ticks_and_bars():
    assert powers(2e9, 3e12) == [1e10, 1e11, 1e12] and powers(1.5e9, 7e9) == [2e9, 5e9]
    line = Line("a", "blue", [(1e9, 1.0), (1e12, 2.0)], bars=((0.5, 1.5), (1.0, 3.0)))
    svg = svg_lines("n", [line], "x", "y", logarithmic=True)
    assert "10⁹" in svg and "10¹²" in svg and svg.count('class="curve"') == 3 and svg.count("<circle") == 2
    places = [float(x) for x in re.findall(r'<circle class="bar" cx="([\d.]+)"', svg)]
    middle = svg_lines(
        "n", [Line("a", "blue", [(1e9, 1.0), (10**10.5, 1.0), (1e12, 2.0)])], "x", "y", logarithmic=True
    )
    inner = [float(x) for x in re.findall(r'cx="([\d.]+)"', middle)]
    assert len(places) == 2 and abs(inner[1] - (inner[0] + inner[2]) / 2) < 0.2
