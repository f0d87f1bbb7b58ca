"""The report: its pictures' arithmetic by hand, and a page that says what the numbers say, whatever is missing."""

import json
import math
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from rlhf_kit.pages import charts
from rlhf_kit.pages.charts import Line, path, smooth, svg_bars, svg_lines, thin, ticks
from rlhf_kit.report.page import read_metrics, result, series
from rlhf_kit.report.page import write_report as write

STAGES = {
    "base": {"truth": -0.62, "correct": 0.04, "reward_model_score": -1.21, "kl": 14.2, "win_rate_vs_sft": 0.08},
    "sft": {"truth": 0.31, "correct": 0.58, "reward_model_score": 0.12, "kl": 0.0, "win_rate_vs_sft": 0.5},
    "ppo": {"truth": 0.62, "correct": 0.79, "reward_model_score": 1.58, "kl": 4.9, "win_rate_vs_sft": 0.74},
    "ppo_no_kl": {"truth": -0.88, "correct": 0.31, "reward_model_score": 3.02, "kl": 44.1, "win_rate_vs_sft": 0.22},
}
DIFFERENCES = {
    "ppo": {"sft": {"truth": (0.22, 0.41), "reward_model_score": (1.2, 1.7)}},
    "ppo_no_kl": {"sft": {"truth": (-1.3, -1.1)}, "ppo": {"reward_model_score": (1.2, 1.7)}},
}
SAMPLE = {
    "chosen": "drawn <by> the seed",
    "prompt": "Is 1 < 2 & 3?",
    "language": "en",
    "category": "sums",
    "answers": {
        "sft": {"text": "<script>alert(1)</script>", "truth": -0.51, "score": 0.27},
        "ppo": {"text": "Yes.\nIt is.", "truth": 0.93, "score": 1.84},
    },
}
SUMMARY = {
    "seconds": {"sft": 8.2, "reward": 14.9, "ppo": 41.3, "ppo_no_kl": 44.4, "measure": 9.5, "total": 118.3},
    "stages": STAGES,
    "differences": DIFFERENCES,
    "reward_model": {"accuracy": 0.841, "accuracy_ceiling": 0.882},
    "samples": [SAMPLE, {**SAMPLE, "prompt": "小美的風箏在哪裡？", "language": "zh"}],
    "seed": 7,
    "machine": "two <cores>",
    "versions": {"torch": "2.13.0"},
    "commit": "abc1234",
}
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a reader sees of a page (style sheet apart), and whether its tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def pictures(text: str) -> dict[str, ElementTree.Element]:
    """The page's SVGs by their label, each parsed as XML."""
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]
    return {svg.get("aria-label"): svg for svg in found}


def save(folder, rows, tail=""):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return folder


def ppo_rows(kl, score, truth, count=30):
    return [
        {
            "step": 4 * i,
            "time": i,
            "kl": kl * i,
            "reward": 99.0,
            "rewards/rm": score * i,
            "rewards/truth_reward": truth,
        }
        | {"completions/length": 9 + i, "entropy": 1.0, "seconds/rollout": 0.2}
        for i in range(count)
    ]


@pytest.fixture
def runs(tmp_path):
    losses = [{"step": i, "time": i, "loss": 3 / (i + 1)} for i in range(40)]
    reward = [{"step": i, "loss": 0.6, "accuracy": 0.5 + i / 100, "eval_accuracy": 0.7} for i in range(9)]
    return {
        "sft": save(tmp_path / "sft", [*losses, {"step": 39, "eval_loss": 0.4}]),
        "reward": save(tmp_path / "reward", reward),
        "ppo": save(tmp_path / "ppo", ppo_rows(0.1, 0.05, 0.6)),
        "ppo-no-kl": save(tmp_path / "ppo-no-kl", ppo_rows(1.0, 0.1, -0.5)),
    }


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-1.5, 1, [-1.5, -1, -0.5, 0, 0.5, 1]),
        (0, 240, [0, 50, 100, 150, 200]),
        (3, 3, [3]),
        (0.001, 0.0042, [0.001, 0.002, 0.003, 0.004]),
    ],
)
def test_ticks_are_round_and_inside(lo, hi, expected):
    assert ticks(lo, hi) == pytest.approx(expected)


def test_ticks_of_steps_are_whole():
    assert ticks(0, 2) != [0, 1, 2]
    assert ticks(0, 2, whole=True) == [0, 1, 2]


def test_path_and_moving_average_by_hand():
    assert path([(0, 1), (2, 3.25)]) == "M0.0 1.0L2.0 3.2"
    assert smooth([(0, 0), (1, 3), (2, 0), (3, 9)]) == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_long_curves_are_thinned_to_means_of_neighbours(monkeypatch):
    monkeypatch.setattr(charts, "MOST_POINTS", 2)
    assert thin([(0, 0), (1, 2), (2, 5)]) == [(0.5, 1), (2, 5)]
    assert thin([(0, 0), (1, 2)]) == [(0, 0), (1, 2)]


def test_a_curve_lies_where_its_axes_say():
    svg = ElementTree.fromstring(svg_lines("x", [Line("a", "blue", [(0, 0), (5, 0.5), (10, 1)])], "step", "nats"))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.iter("circle")]
    assert [dot[0] for dot in dots] == pytest.approx([charts.LEFT, 246, charts.WIDTH - charts.RIGHT], abs=0.1)
    assert dots[0][1] - dots[1][1] == pytest.approx(dots[1][1] - dots[2][1], abs=0.11) and dots[0][1] > dots[2][1]
    labels = {text.text: (float(text.get("x")), float(text.get("y"))) for text in svg.iter("text")}
    assert labels["10"][0] == pytest.approx(dots[2][0])  # the tick under the point, and the tick beside it
    assert labels["1"][1] - 4 == pytest.approx(dots[2][1], abs=0.1)
    assert "step" in labels and "nats" in labels


def test_bars_are_as_long_as_their_values():
    svg = ElementTree.fromstring(svg_bars("x", [("a", 10.0, "blue"), ("b", 5.0, "red"), ("c", 0.0, "red")], "s"))
    long, half, least = (float(bar.get("width")) for bar in svg.iter("rect"))
    assert half == pytest.approx(long / 2) and 0 < least < 3


def test_bars_of_negative_values_go_the_other_way_from_zero():
    svg = ElementTree.fromstring(svg_bars("x", [("a", -60.0, "blue"), ("b", 30.0, "red"), ("c", 0.0, "red")], ""))
    below, above, none = [(float(r.get("x")), float(r.get("width"))) for r in svg.iter() if r.tag.endswith("rect")]
    zero = above[0]
    assert below[0] + below[1] == pytest.approx(zero, abs=0.1) and none[0] == pytest.approx(zero, abs=0.1)
    assert below[1] == pytest.approx(2 * above[1], abs=0.2) and below[0] >= 130


def test_series_skips_what_is_no_number_and_keeps_the_later_of_a_step(tmp_path):
    lines = '{"step": 1, "kl": NaN}\n{"step": 2, "kl": null}\n{"step": 3, "kl": true}\n[1]\n{"kl": 1}\n'
    tail = '{"step": 5, "kl": 0.5}\n{"step": 4, "kl": 1}\n{"step": 4, "kl": 2}\n{"step": 6, "kl": 0.'
    rows = read_metrics(save(tmp_path / "run", [], lines + tail))
    assert series(rows, "kl") == [(4, 2), (5, 0.5)]
    assert series(rows, "no such") == [] and read_metrics(tmp_path / "nowhere") == []


def told(stages=STAGES, **differences):
    return result({"stages": stages, "differences": {**DIFFERENCES, **differences}})


def test_the_result_follows_the_intervals():
    assert "74%" in told() and "PPO beats SFT" in told() and "difference +0.22 to +0.41" in told()
    assert ": over-optimisation" in told() and "：過度最佳化" in told()
    for noise in ({"sft": {"truth": (-1.3, 0.01)}}, {"ppo": {"reward_model_score": (-0.1, 1.6)}}):
        calm = told(ppo_no_kl={**DIFFERENCES["ppo_no_kl"], **noise})
        assert "no over-optimisation that shows" in calm and "看不出過度最佳化" in calm
    assert "differ by no more than chance" in told(ppo={"sft": {"truth": (-0.1, 0.2)}})
    assert "SFT beats PPO" in told(ppo={"sft": {"truth": (-0.3, -0.2)}})
    right = STAGES["sft"]["correct"]
    for interval, words in (((0.01, 0.05), "more"), ((-0.02, 0.05), "as many"), ((-0.05, -0.01), "fewer")):
        said = told(ppo={"sft": {"correct": interval}})
        assert f"{words} answers are right" in said and f"({right:.0%} → 79%, difference " in said
    assert "答對較少" in said and "answers are right" not in told()


def test_without_intervals_the_result_judges_nothing():
    for differences in ({}, {"ppo": {"sft": {"truth": None}}}):
        said = result({"stages": STAGES, "differences": differences})
        assert "74%" in said and "beats" not in said and "over-optimisation" not in said and "過度最佳化" not in said
    assert result({"stages": {"ppo": STAGES["ppo"]}}) == result({}) == result({"stages": {"sft": STAGES["sft"]}}) == ""


def test_the_report_leads_to_the_other_pages(tmp_path):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "report.html").touch()
    pages = {"suite/report.html": "gained & lost", "none.html": "nowhere"}
    text = write(tmp_path / "report.html", {}, {}, pages).read_text(encoding="utf-8")
    assert "nowhere" not in text
    assert '<a href="suite/report.html">gained &amp; lost</a>' in text


def test_the_page_holds_every_number_of_the_summary(tmp_path, runs):
    text = write(tmp_path / "new" / "report.html", SUMMARY, runs).read_text(encoding="utf-8")
    page = Page(text)
    for stage in STAGES.values():
        for value, form in zip(stage.values(), ("+.2f", ".0%", "+.2f", ".1f", ".0%"), strict=True):
            assert format(value, form).replace("-", "−") in page.text
    for words in (
        "84.1%",
        "88.2%",
        "−0.51",
        "+0.27",
        "+0.93",
        "+1.84",
        "118.3 s",
        "abc1234",
        "torch 2.13.0",
        "seed 7",
    ):
        assert words in page.text
    bars = pictures(text)["Seconds a stage 各階段秒數"]
    assert [float(bar.find("title").text.split()[-2]) for bar in bars.iter("rect")] == [8.2, 14.9, 41.3, 44.4, 9.5]
    assert page.text.index("Over-optimisation 過度最佳化") < page.text.index("Learning curves 學習曲線")


def test_pictures_show_the_runs(tmp_path, runs):
    text = write(tmp_path / "report.html", SUMMARY, runs).read_text(encoding="utf-8")
    drawn = pictures(text)
    score = drawn["Reward-model score 獎勵模型分數"]
    tips = [dot.find("title").text for dot in score.iter("circle")]
    assert len(tips) == 60 and "PPO: 1.45 (step 訓練步數 116)" in tips  # the reward model's, not the total reward
    assert "PPO, no KL penalty: 2.9 (step 訓練步數 116)" in tips
    assert [level.find("title").text.split()[-1] for level in score.iter("path") if level.get("class") == "level"] == [
        "0.12"
    ]
    distance = drawn["Score and truth by distance from SFT 離 SFT 越遠"]
    tips = [dot.find("title").text for dot in distance.iter("circle")]
    assert len(tips) == 120 and any("truth: -0.5 (√KL, KL in nats per completion" in tip for tip in tips)
    assert any(tip.endswith(f"{math.sqrt(29):.4g})") for tip in tips)
    accuracy = drawn["reward: accuracy 準確率"]
    assert any("0.882" in (path.findtext("title") or "") for path in accuracy.iter("path"))
    assert {"KL to SFT 與 SFT 的 KL 散度", "Answer length 回答長度", "SFT: loss 損失"} <= set(drawn)
    assert all(svg.get("viewBox") and svg.get("role") == "img" for svg in drawn.values())


def test_what_people_wrote_is_escaped(tmp_path, runs):
    text = write(tmp_path / "report.html", SUMMARY, {"<b>mine": runs["ppo"]}).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text and "<b>mine" not in text
    for words in ("<script>alert(1)</script>", "Is 1 < 2 & 3?", "drawn <by> the seed", "<b>mine", "two <cores>"):
        assert words in page.text


def test_nothing_points_outside_the_file(tmp_path, runs):
    text = write(tmp_path / "report.html", SUMMARY, runs).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|\bsrc=|\bhref=|@import|url\(", text)


@pytest.mark.parametrize("missing", [*SUMMARY, *(f"stages/{name}" for name in STAGES)])
def test_what_is_missing_is_left_out(tmp_path, runs, missing):
    key, _, stage = missing.partition("/")
    left = SUMMARY | {"stages": {k: v for k, v in STAGES.items() if k != stage}}
    if not stage:
        left.pop(key)
    page = Page(write(tmp_path / "report.html", left, runs).read_text(encoding="utf-8"))
    assert "None" not in page.text and "nan" not in page.text.split()


def test_missing_numbers_of_a_stage_are_dashes(tmp_path):
    stages = {"base": {"truth": -0.62, "kl": math.nan, "correct": None}, "sft": STAGES["sft"], "ppo": None}
    page = Page(write(tmp_path / "report.html", {"stages": stages}, {}).read_text(encoding="utf-8"))
    assert "Base−0.62––––" in page.text
    assert page.tags.count("tr") == 3  # the head, base and SFT


def test_one_run_alone_gives_its_curves(tmp_path, runs):
    text = write(tmp_path / "report.html", {}, {"mine": runs["ppo"]}).read_text(encoding="utf-8")
    assert {"Truth 真實品質", "KL to SFT 與 SFT 的 KL 散度"} <= set(pictures(text))
    assert "Results" not in Page(text).text and "Sample answers" not in Page(text).text


def test_empty_metrics_give_a_page_without_pictures(tmp_path):
    empty = {"ppo": save(tmp_path / "ppo", []), "sft": save(tmp_path / "sft", [{"step": 1}]), "no": tmp_path / "no"}
    text = write(tmp_path / "report.html", {}, empty).read_text(encoding="utf-8")
    assert not pictures(text) and Page(text).text


def test_a_failed_write_leaves_the_old_report(tmp_path):
    target = write(tmp_path / "report.html", {}, {})
    old = target.read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == [".rlhf_kit", "report.html"]
    (tmp_path / ".report.html.rlhf_kit").mkdir()  # where the new page would be written
    with pytest.raises(OSError):
        write(target, SUMMARY, {})
    assert target.read_text(encoding="utf-8") == old
