"""The page of a reward model's measures: figures with their intervals, pictures, and what they say in plain words."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_kit.escaping import html
from rlhf_kit.eval.items import Item, Results
from rlhf_kit.pages.charts import Line, figure, svg_bars
from rlhf_kit.pages.shell import document, number, section, table, zh
from rlhf_kit.versions import made_by

# name -> English, Chinese, how it is written
CALIBRATION = {
    "ece": ("Calibration error (ECE)", "校準誤差", ".3f"),
    "brier": ("Brier score", "Brier 分數", ".3f"),
    "log_loss": ("Log loss, nats", "對數損失", ".3f"),
}
HEADLINES = {
    "ranked": {
        "pair_accuracy": ("Pair accuracy", "成對準確率", ".3f"),
        "kendall_tau": ("Kendall's tau-b", "肯德爾等級相關", "+.3f"),
        "top1": ("Best answer found", "選中最佳回答", ".3f"),
        "bottom1": ("Worst answer found", "選中最差回答", ".3f"),
        **CALIBRATION,
        "longer_is_better": ("Accuracy of “longer is better”", "「越長越好」的準確率", ".3f"),
        "length_spearman_score": ("Score and length, rho", "分數與長度的相關", "+.3f"),
        "length_spearman_rank": ("People's rank and length, rho", "人的排名與長度的相關", "+.3f"),
        "length_spearman_excess": ("Their difference", "兩者之差", "+.3f"),
    },
    "thumbs": {
        "accuracy": ("Accuracy", "準確率", ".3f"),
        "auc": ("Area under the ROC curve", "ROC 曲線下面積", ".3f"),
        "ups": ("Share of thumbs up", "讚的比例", ".3f"),
        **CALIBRATION,
        "length_spearman_score": ("Score and length, rho", "分數與長度的相關", "+.3f"),
        "length_spearman_label": ("Thumb and length, rho", "讚與長度的相關", "+.3f"),
        "length_spearman_excess": ("Their difference", "兩者之差", "+.3f"),
    },
}
MEANINGS = {
    "pair_accuracy": "share of a list's strictly ordered pairs that the scores order alike, an equal score counting "
    "one half; the mean over lists · 每份排序中方向一致的成對比例",
    "kendall_tau": "1: the same order, 0: no relation, −1: reversed; the mean over lists · 1 為完全一致",
    "top1": "the answer scored best is one that people ranked first · 分數最高者就是人選的第一名",
    "bottom1": "the answer scored worst is one that people ranked last · 分數最低者就是人選的最後一名",
    "accuracy": "a score above the border where up and down are as likely goes with a thumbs-up · 分數與讚一致的比例",
    "auc": "chance that a thumbs-up scores above a thumbs-down · 讚的分數高於噓的機率",
    "ece": "how far the probability that the scores claim is from what comes true · 宣稱的機率與實際差多少",
    "brier": "mean squared error of that probability; 0.25 is a coin's · 機率的均方誤差，擲銅板為 0.25",
    "log_loss": "0.693 is a coin's · 擲銅板為 0.693",
    "longer_is_better": "what choosing the longer answer would reach on the same pairs · 只選較長的回答能得到的準確率",
    "length_spearman_score": "rank correlation within a list; above people's it warns · 高於人的相關即為警訊",
}
MOST_DOTS = 240  # of a scatter: as many as charts.py draws before it averages
TAU_EDGES = [-1.0, -0.6, -0.2, 0.2, 0.6, 1.0]


def length_sentence(record: Mapping[str, Any]) -> tuple[str, str]:
    """What the length correlation says, in English and Chinese: a difference counts if its interval leaves out 0."""
    people = "length_spearman_rank" if record["kind"] == "ranked" else "length_spearman_label"
    scores, low_high = record["scores"], record["intervals"]["length_spearman_excess"]
    ours, theirs = scores["length_spearman_score"], scores[people]
    word, chinese = ("ranks", "排名") if record["kind"] == "ranked" else ("thumbs", "讚")
    if ours is None or theirs is None or math.isnan(ours) or math.isnan(theirs) or low_high is None:
        return "The lengths do not vary enough to compare with.", "長度或分數變化不足，無法比較。"
    english, zh_told = f"rho {ours:.2f} against {theirs:.2f}", f"等級相關 {ours:.2f} 對 {theirs:.2f}"
    if low_high[0] > 0:
        return (
            f"Warning: the score rises with length more than people's {word} do: {english}.",
            f"警訊：分數隨長度上升得比人的{chinese}更多：{zh_told}。",
        )
    if low_high[1] < 0:
        return (
            f"The score rises with length less than people's {word} do: {english}.",
            f"分數隨長度上升得比人的{chinese}少：{zh_told}。",
        )
    return (
        f"The score goes with length about as people's {word} do: {english}, a difference within chance.",
        f"分數與長度的關係和人的{chinese}相近：{zh_told}，差異在誤差範圍內。",
    )


def record_of(results: Results) -> dict[str, Any]:
    """The details of results, with `scores` and `intervals` among them: a record as `evaluate_reward` gives it."""
    return {**results.details, "scores": results.scores, "intervals": results.measured.intervals}


def report_page(results: Results, items: Sequence[Item]) -> str:
    """The page of a reward model's results and items."""
    record, settings = record_of(results), results.settings
    source = f"{settings.data} ({settings.options['split']})"
    english, chinese = length_sentence(record)
    body = [
        f"<h1>Reward model {zh('獎勵模型評測')}</h1>",
        f'<p class="soft">{html(settings.model)} · {html(source)}</p>',
        "" if results.reportable else "<p><b>--limit was given: no result to report. 只評了一部分。</b></p>",
        f'<p class="result">{html(english)}<br>{zh(html(chinese))}</p>',
        _figures_section(record),
        section(
            ("Calibration", "校準"),
            "Of the pairs that the scores call with this probability, how many come out so? On the diagonal the "
            "scores mean what they say; below it they are too sure. 落在對角線上表示機率可信，在其下方表示過度自信。",
            _reliability(record),
        ),
        section(
            ("Length", "長度"),
            "A reward model that pays for length teaches the policy to ramble. 只獎勵長度的模型會教出囉唆的策略。",
            _by_length(record),
            _scatter(items, settings.seed),
        ),
        section(("Agreement by list", "各份排序的一致程度"), "", _taus(items)),
        _counts_section(record["n"]),
    ]
    made = made_by({"commit": results.commit, "versions": results.versions})
    foot = [f"protocol {settings.protocol} {settings.version}", f"{results.seconds:.1f} s", *made]
    return document("rlhf_kit: reward model 獎勵模型", body, foot)


def _figures_section(record: Mapping[str, Any]) -> str:
    rows, meanings = [], []
    for name, (english, chinese, form) in HEADLINES[record["kind"]].items():
        interval = record["intervals"][name]
        bounds = " to ".join(number(bound, form) for bound in interval) if interval else "–"
        rows.append([f"{english} {zh(chinese)}", f"<b>{number(record['scores'][name], form)}</b>", bounds])
        if name in MEANINGS:
            meanings.append(f"<dt>{english}</dt><dd>{MEANINGS[name]}</dd>")
    ceiling = record["ceiling"]
    if ceiling and ceiling["of_ceiling"] is not None:
        rows.insert(1, [f"… of the labelers' ceiling {zh('占標註者上限')}", number(ceiling["of_ceiling"], ".3f"), ""])
        meanings.append(
            f"<dt>Ceiling</dt><dd>{ceiling['labelers']} labelers order {ceiling['agreement']:.1%} of "
            f"{ceiling['pairs']} pairs alike: {ceiling['ceiling']:.1%} can be reached · 標註者一致性的上限</dd>"
        )
    head = ["Figure " + zh("指標"), "Value " + zh("數值"), "95 % interval " + zh("信賴區間")]
    words = "Intervals: bootstrap over prompts. 信賴區間：以提示為單位重抽。"
    return section(("Figures", "指標"), words, table(head, rows), f"<dl>{''.join(meanings)}</dl>", grid="results")


def _reliability(record: Mapping[str, Any]) -> str:
    bins = record["reliability"]
    low = 0.5 if record["kind"] == "ranked" else 0.0
    name = f"Reliability of {len(bins)} bins 可靠度圖"
    lines = [
        Line("reward model 獎勵模型", "blue", [(item["predicted"], item["accuracy"]) for item in bins]),
        Line("perfect 完美校準", "grey", [(low, low), (1.0, 1.0)], dashed=True),
    ]
    return figure(name, lines, "came true 實際", "predicted probability 預測機率")


def _by_length(record: Mapping[str, Any]) -> str:
    points = [(item["mean"], item["accuracy"]) for item in record["length_bins"]]
    scores = record["scores"]
    levels = [
        ("all pairs 全部", scores.get("pair_accuracy")),
        ("longer is better 越長越好", scores.get("longer_is_better")),
    ]
    x_name = "better answer's tokens − worse answer's 較好者多出的長度"
    line = Line("pair accuracy 成對準確率", "blue", points)
    return figure("Accuracy by length difference 長度差與準確率", [line], "accuracy 準確率", x_name, levels)


def _scatter(items: Sequence[Item], seed: int) -> str:
    dots = [
        (length, score)
        for item in items
        for length, score in zip(item.details["lengths"], item.details["scores"], strict=True)
        if score is not None
    ]
    if len(dots) > MOST_DOTS:
        dots = random.Random(seed).sample(dots, MOST_DOTS)
    line = Line("completion 回答", "ochre", sorted(dots))
    return figure("Score against length 分數與長度", [line], "score 分數", "tokens 長度", scatter=True)


def _taus(items: Sequence[Item]) -> str:
    taus = [item.scores.get("kendall_tau", math.nan) for item in items]
    taus = [tau for tau in taus if not math.isnan(tau)]
    if not taus:
        return ""
    last = len(TAU_EDGES) - 2
    counts = [0] * (last + 1)
    for tau in taus:
        counts[sum(tau >= edge for edge in TAU_EDGES[1:-1])] += 1
    edges = [number(edge, "+.1f") for edge in TAU_EDGES]
    names = [f"{low} to {high}" for low, high in zip(edges, edges[1:], strict=False)]
    bars = [(name, 100 * count / len(taus), "green") for name, count in zip(names, counts, strict=True)]
    title = "Kendall's tau-b, % of lists 各份排序的 tau-b 分布"
    return f"<figure><h3>{title}</h3>{svg_bars(title, bars, '%')}</figure>"


def _counts_section(n: Mapping[str, int]) -> str:
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in n.items()]
    return section(("What was counted", "計數"), "", table(["", "Number " + zh("數量")], rows), grid="results")
