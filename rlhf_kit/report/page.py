"""One HTML page from a summary and the `metrics.jsonl` of runs: opened offline, no scripts, pictures drawn by hand."""

from __future__ import annotations

import math
from pathlib import Path

from rlhf_kit.escaping import html
from rlhf_kit.inputs import parse_json
from rlhf_kit.intervals import side
from rlhf_kit.pages.charts import Line, Points, figure, is_number, svg_bars
from rlhf_kit.pages.shell import document, link, number, section, table, write_page, zh
from rlhf_kit.storage import Folder

STAGES = {"base": "Base", "sft": "SFT", "ppo": "PPO", "ppo_no_kl": "PPO, no KL penalty"}
COLOURS = {
    "base": "grey", "pretrain": "purple", "sft": "green", "reward": "ochre", "reward_human": "ochre", "ppo": "blue",
    "ppo_no_kl": "red",
}  # fmt: skip
SPARE_COLOURS = ("blue", "red", "green", "purple", "ochre")
COLUMNS = {  # English, Chinese, how it is written, what it means
    "truth": ("Truth", "真實品質", "+.2f", "mean gold score, computed from facts: 1 is best · 依事實計算，1 最好"),
    "correct": ("Correct", "答對率", ".0%", "share of answers that are right · 答對的比例"),
    "reward_model_score": (
        "Reward-model score",
        "獎勵模型分數",
        "+.2f",
        "all that PPO sees: never the truth · PPO 只看得到它",
    ),
    "kl": ("KL", "KL 散度", ".1f", "distance from SFT, nats per completion · 離 SFT 多遠，每則回答的 nat"),
    "win_rate_vs_sft": (
        "Wins over SFT",
        "對 SFT 勝率",
        ".0%",
        "its answer beats SFT's by truth · 真實品質勝過 SFT 的比例",
    ),
}
SFT = "SFT on held-out prompts 測試提示"
MORE_CURVES = {
    "entropy": ("Entropy 熵", "nats per token"),
    "completions/terminated": ("Answers that ended 正常結束的回答", "share"),
    "policy/clip_fraction": ("Clipped updates 被截斷的更新", "share of tokens"),
    "value/explained_variance": ("Value, explained variance 價值解釋變異", "1 is perfect"),
    "seconds/rollout": ("Time to sample a rollout 取樣時間", "seconds"),
}


def write_report(
    path: str | Path, summary: dict, runs: dict[str, str | Path], pages: dict[str, str] | None = None
) -> Path:
    """Write the page of `summary` (a demo's summary.json, or {}) and `runs` (label -> folder with metrics.jsonl).

    `pages`: others that it leads to where they are, by their place beside it -> what they are.

    What is missing is left out. The file appears whole or not at all; its folder is made if need be. Raises UserError
    where it would replace a file that is no page of ours.
    """
    metrics = {label: read_metrics(folder) for label, folder in runs.items()}
    path = Path(path)
    pages = {place: words for place, words in (pages or {}).items() if (path.parent / place).is_file()}
    return write_page(Folder(path.parent, "demo"), path.name, _page(summary, metrics, pages))


def result(summary: dict) -> str:
    """What the numbers say, English and Chinese; empty without them. A difference counts if its interval leaves out 0.

    `summary`: `stages`, and `differences`: stage -> stage before -> figure -> 95 % interval of the paired difference.
    """
    parts = [*filter(None, (_gain(summary), _right(summary), _over_optimisation(summary)))]
    english, chinese = "; ".join(part[0] for part in parts), "；".join(part[1] for part in parts)
    return english and f"{english[0].upper()}{english[1:]}.<br>{zh(chinese + '。')}"


def _gain(summary: dict) -> tuple[str, str] | None:
    """What PPO made of SFT, by truth."""
    sft, ppo = (summary.get("stages", {}).get(name) or {} for name in ("sft", "ppo"))
    if not all(is_number(value) for value in (sft.get("truth"), ppo.get("truth"), ppo.get("win_rate_vs_sft"))):
        return None
    interval = _interval(summary, "ppo", "sft", "truth")
    means = f"{number(sft['truth'], '+.2f')} → {number(ppo['truth'], '+.2f')}"
    share = number(ppo["win_rate_vs_sft"], ".0%")
    texts = (f"the better answer on {share} of the held-out prompts", f"在 {share} 的測試提示上較好")
    if interval is None:
        return (
            f"by truth PPO's mean is {means} from SFT, {texts[0]}",
            f"真實品質的平均：SFT → PPO 為 {means}，{texts[1]}",
        )
    low, high = (number(bound, "+.2f") for bound in interval)
    verdict = {
        1: ("PPO beats SFT", "PPO 勝過 SFT"),
        -1: ("SFT beats PPO", "PPO 不如 SFT"),
        0: ("PPO and SFT differ by no more than chance", "PPO 與 SFT 的差距在誤差範圍內"),
    }[side(interval)]
    return (
        f"by truth {verdict[0]} (mean {means}, difference {low} to {high}), with {texts[0]}",
        f"依真實品質，{verdict[1]}（平均 {means}，差距 {low} 至 {high}），{texts[1]}",
    )


def _right(summary: dict) -> tuple[str, str] | None:
    """What PPO made of the share of right answers."""
    sft, ppo = ((summary.get("stages", {}).get(name) or {}).get("correct") for name in ("sft", "ppo"))
    interval = _interval(summary, "ppo", "sft", "correct")
    if interval is None or not all(map(is_number, (sft, ppo))):
        return None
    verdict = {
        1: ("more answers are right", "答對較多"),
        -1: ("fewer answers are right", "答對較少"),
        0: ("as many answers are right, as far as can be told", "答對的比例看不出差別"),
    }[side(interval)]
    low, high = (number(bound, "+.0%") for bound in interval)
    means = f"{number(sft, '.0%')} → {number(ppo, '.0%')}"
    return f"{verdict[0]} ({means}, difference {low} to {high})", f"{verdict[1]}（{means}，差距 {low} 至 {high}）"


def _over_optimisation(summary: dict) -> tuple[str, str] | None:
    """Whether without the penalty the score rose above PPO's while the truth fell below SFT's."""
    stages = summary.get("stages", {})
    sft, ppo, free = (stages.get(name) or {} for name in ("sft", "ppo", "ppo_no_kl"))
    scores = [stage.get("reward_model_score") for stage in (ppo, free)]
    if not all(is_number(value) for value in (sft.get("truth"), free.get("truth"), *scores)):
        return None
    score = f"{number(scores[1], '+.2f')} (PPO {number(scores[0], '+.2f')})"
    truth = number(free["truth"], "+.2f")
    texts = (
        f"without the KL penalty the reward model gives {score}, truth is {truth}",
        f"沒有 KL 懲罰時，獎勵模型給 {score}，真實品質為 {truth}",
    )
    risen = _interval(summary, "ppo_no_kl", "ppo", "reward_model_score")
    fallen = _interval(summary, "ppo_no_kl", "sft", "truth")
    if risen is None or fallen is None:
        return texts
    hacked = risen[0] > 0 and fallen[1] < 0
    verdict = (
        ("over-optimisation", "過度最佳化") if hacked else ("no over-optimisation that shows", "看不出過度最佳化")
    )
    low, high = (number(bound, "+.2f") for bound in fallen)
    return (
        f"{texts[0]}, {low} to {high} against SFT: {verdict[0]}",
        f"{texts[1]}，與 SFT 差 {low} 至 {high}：{verdict[1]}",
    )


def _interval(summary: dict, stage: str, before: str, figure: str) -> tuple[float, float] | None:
    ends = summary.get("differences", {}).get(stage, {}).get(before, {}).get(figure)
    return tuple(ends) if isinstance(ends, list | tuple) and len(ends) == 2 and all(map(is_number, ends)) else None


def read_metrics(folder: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; none when there is no such file. A line cut off by a kill is skipped."""
    file, rows = Path(folder) / "metrics.jsonl", []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
    return rows


def series(rows: list[dict], key: str) -> Points:
    """(step, value) by step; what is missing or not finite is skipped; of a step logged twice the later counts."""
    return sorted({row["step"]: row[key] for row in rows if is_number(row.get(key))}.items())


def _name(label: str) -> str:
    """How the page calls a stage or run; runs of any label keep theirs."""
    return STAGES.get(label.replace("-", "_"), label)


def _colour(label: str, labels) -> str:
    spare = SPARE_COLOURS[list(labels).index(label) % len(SPARE_COLOURS)] if label in labels else "grey"
    return COLOURS.get(label.replace("-", "_"), spare)


def curves(metrics: dict[str, list[dict]], sft: dict, ceiling: float | None = None) -> str:
    """All charts of runs, by label the rows of each. `sft`: its figures, to compare with; `ceiling`: of accuracy."""
    ppo = {label: rows for label, rows in metrics.items() if any(is_number(row.get("kl")) for row in rows)}
    others = {label: rows for label, rows in metrics.items() if label not in ppo}
    return _ppo_sections(ppo, sft) + _learning_section(others, ceiling)


def _page(summary: dict, metrics: dict[str, list[dict]], pages: dict[str, str]) -> str:
    measures, reward_model = summary.get("stages", {}), summary.get("reward_model", {})
    stages = {name: measures[name] for name in dict.fromkeys([*STAGES, *measures]) if measures.get(name)}
    sentence = result(summary)
    body = [
        f"<h1>rlhf_kit {zh('從文字接龍到 PPO')}</h1>",
        sentence and f'<p class="result">{sentence}</p>',
        "".join(f"<p>→ {link(file, words)}</p>" for file, words in pages.items()),
        _results_section(stages, reward_model),
        curves(metrics, stages.get("sft", {}), reward_model.get("accuracy_ceiling")),
        _human_section(summary.get("human", {}).get("lists", [])),
        _samples_section(summary.get("samples", [])),
        _costs_section(summary),
    ]
    return document("rlhf_kit: report 報告", body, _foot(summary))


def _results_section(stages: dict, reward_model: dict) -> str:
    """A row a stage, the best of each column in bold, and what the columns mean; the reward model's accuracy."""
    columns = {key: spec for key, spec in COLUMNS.items() if any(is_number(row.get(key)) for row in stages.values())}
    best = {key: max(filter(is_number, (row.get(key) for row in stages.values()))) for key in columns}
    rows = []
    for name, stage in stages.items():
        rows.append([html(_name(name))])
        for key, (_, _, form, _) in columns.items():
            cell = number(stage.get(key), form)
            rows[-1].append(f"<b>{cell}</b>" if stage.get(key) == best[key] and key != "kl" else cell)
    words = [(english, meaning) for english, _, _, meaning in columns.values()]
    accuracy, ceiling = (reward_model.get(key) for key in ("accuracy", "accuracy_ceiling"))
    if is_number(accuracy):
        limit = f"; the labelers' own noise allows {ceiling:.1%} (上限)" if is_number(ceiling) else ""
        words.append(
            ("Reward model 獎勵模型", f"orders {accuracy:.1%} of held-out pairs as the labelers did (準確率){limit}")
        )
    head = ["Stage " + zh("階段"), *(f"{english} {zh(chinese)}" for english, chinese, _, _ in columns.values())]
    meanings = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in words)
    parts = [table(head, rows) if columns else "", meanings and f"<dl>{meanings}</dl>"]
    return section(("Results", "各階段比較"), "On the same held-out prompts. 同樣的測試提示。", *parts, grid="results")


def _truth_and_score(rows: list[dict]) -> tuple[Points, Points]:
    """The gold reward's curve, and the learned one's: the only other reward function, or else the total."""
    names = sorted({key for row in rows for key in row if key.startswith("rewards/")})
    learned = [name for name in names if "truth" not in name]
    truth = next((name for name in names if "truth" in name), "")
    return series(rows, truth), series(rows, learned[0] if len(learned) == 1 else "reward")


def _ppo_sections(runs: dict[str, list[dict]], sft: dict) -> str:
    pairs = {label: _truth_and_score(rows) for label, rows in runs.items()}
    scores = [Line(_name(label), _colour(label, runs), score) for label, (_, score) in pairs.items()]
    truths = [Line(_name(label), _colour(label, runs), truth) for label, (truth, _) in pairs.items()]
    distance = []
    for label, rows in runs.items():
        root = {step: math.sqrt(max(kl, 0)) for step, kl in series(rows, "kl")}
        for kind, points in zip(("truth", "score"), pairs[label], strict=True):
            places = [(root[step], value) for step, value in points if step in root]
            distance.append(Line(f"{_name(label)}: {kind}", _colour(label, runs), places, kind == "score"))

    def chart(key: str, title: str, unit: str) -> str:
        return figure(title, [Line(_name(x), _colour(x, runs), series(rows, key)) for x, rows in runs.items()], unit)

    return (
        section(
            ("Over-optimisation", "過度最佳化 (reward hacking)"),
            "Where the score rises while the truth falls, the policy has found answers that please the reward model "
            "and nobody else. 分數上升而真實品質下降：策略找到了只討好獎勵模型的回答。",
            figure("Reward-model score 獎勵模型分數", scores, "score", levels=[(SFT, sft.get("reward_model_score"))]),
            figure("Truth 真實品質", truths, "gold score", levels=[(SFT, sft.get("truth"))]),
            figure(
                "Score and truth by distance from SFT 離 SFT 越遠",
                distance,
                "each in its own units",
                "√KL, KL in nats per completion (Gao et al. 2022, arXiv:2210.10760)",
                scatter=True,
            ),
        )
        + section(
            ("KL and length", "KL 散度與長度"),
            "How far each policy moves from SFT, and how long its answers grow.",
            chart("kl", "KL to SFT 與 SFT 的 KL 散度", "nats per completion"),
            chart("completions/length", "Answer length 回答長度", "tokens"),
        )
        + section(("More of PPO", "更多 PPO 曲線"), "", *(chart(key, *words) for key, words in MORE_CURVES.items()))
    )


def _learning_section(metrics: dict[str, list[dict]], ceiling: float | None) -> str:
    """Losses and accuracies of the runs that are not PPO; the reward model's accuracy under its ceiling."""
    figures = []
    for label, rows in metrics.items():
        for key, title, unit in (("loss", "loss 損失", "nats"), ("accuracy", "accuracy 準確率", "share of pairs")):
            lines = [
                Line("training 訓練", _colour(label, metrics), series(rows, key)),
                Line("held out 測試", "ink", series(rows, f"eval_{key}")),
            ]
            levels = [("ceiling: labelers disagree 上限", ceiling)] if key == "accuracy" else []
            figures.append(figure(f"{_name(label)}: {title}", lines, unit, levels=levels))
    return section(("Learning curves", "學習曲線"), "", *figures)


def _human_section(lists: list[dict]) -> str:
    """The user's own rankings, and the reward model's before and after it learned from them."""
    rows = []
    for one in lists:
        texts = [one["prompt"], *(f"{letter}: {text}" for letter, text in one["answers"].items())]
        right = f"{one['right_before']} → {one['right_after']} / {one['pairs']}"
        rows.append(
            ["<br>".join(map(html, texts)), *(html(one[name]) for name in ("order", "before", "after")), right]
        )
    names = ("List", "這一組"), ("Yours", "你的"), ("Before", "之前"), ("After", "之後"), ("Pairs alike", "一致的組數")
    head = [f"{english} {zh(chinese)}" for english, chinese in names]
    words = "Best first, = is a tie: what they moved in the reward model. 你的排序改變了獎勵模型的什麼。"
    return section(("Your rankings", "你的排序"), words, table(head, rows) if rows else "")


def _samples_section(samples: list[dict]) -> str:
    cards = []
    for sample in samples:
        lang = ' lang="zh-Hant"' if sample.get("language") == "zh" else ""
        answers = "".join(
            f'<div class="answer" style="--c:var(--{_colour(stage, STAGES)})"><b>{html(_name(stage))}</b>'
            f'<p{lang}>{html(str(answer.get("text", "")))}</p><span class="soft">truth '
            f"{number(answer.get('truth'), '+.2f')} · score {number(answer.get('score'), '+.2f')}</span></div>"
            for stage, answer in sample.get("answers", {}).items()
        )
        head = f"<h3{lang}>{html(str(sample.get('prompt', '')))}</h3>"
        head += f'<p class="soft">{html(str(sample.get("chosen", "")))}</p>'
        cards.append(f'<div class="sample">{head}<div class="grid answers">{answers}</div></div>')
    words = "Held-out prompts, each answered by every model. 同一個提示，各階段的回答。"
    return section(("Sample answers", "回答範例"), words, *cards, grid="samples")


def _costs_section(summary: dict) -> str:
    seconds = {name: value for name, value in summary.get("seconds", {}).items() if is_number(value)}
    bars = [(_name(name), value, _colour(name, seconds)) for name, value in seconds.items() if name != "total"]
    total = f"{seconds['total']:.1f} s in all 總計." if "total" in seconds else ""
    chart = f"<figure>{svg_bars('Seconds a stage 各階段秒數', bars, 's')}</figure>" if bars else ""
    return section(("Time", "時間"), total, chart)


def _foot(summary: dict) -> list[str]:
    facts = [f"{key} {summary[key]}" for key in ("machine", "seed", "commit") if summary.get(key) is not None]
    return [*facts, *(f"{name} {version}" for name, version in summary.get("versions", {}).items())]
