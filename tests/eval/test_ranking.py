"""The measures: values computed by hand, definitions followed literally, and what must not change them."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from rlhf_kit import intervals as bootstrap
from rlhf_kit import ops
from rlhf_kit.eval.reward.ranking import (
    RankedList,
    Rankings,
    Thumbs,
    accuracy_by_length,
    bottom_agreement,
    kendall_tau_b,
    midranks,
    pair_accuracy,
    pairs,
    reliability,
    sigmoid,
    top_agreement,
)

NAN = math.nan


def measure_rankings(lists, logit_scale=1.0, seed=0):
    return Rankings(lists, logit_scale).measure(seed)


def measure_thumbs(*columns):
    return Thumbs(*columns).measure()


def random_lists(count=60, prompts=25, seed=0):
    draw = np.random.default_rng(seed)
    lists = []
    for _ in range(count):
        size = int(draw.integers(2, 7))
        scores = np.round(draw.normal(size=size) * 2) / 2  # with equal ones
        lengths = draw.integers(1, 40, size=size)
        ranks = 1 + np.argsort(np.argsort(-scores + draw.normal(size=size)))
        ranks = np.minimum(ranks, draw.integers(1, size + 1))  # with ties
        prompt = f"p{draw.integers(prompts)}"
        lists.append(RankedList(prompt, scores.tolist(), ranks.tolist(), lengths.tolist()))
    return lists


@pytest.mark.parametrize(
    ("scores", "ranks", "accuracy", "tau", "top", "bottom"),
    [
        ([3, 2, 1], [1, 2, 3], 1.0, 1.0, 1.0, 1.0),
        ([1, 2, 3], [1, 2, 3], 0.0, -1.0, 0.0, 0.0),
        ([3, 1, 2], [1, 2, 3], 2 / 3, 1 / 3, 1.0, 0.0),
        ([2, 2], [1, 2], 0.5, NAN, 0.5, 0.5),
        ([1, 2], [1, 1], NAN, NAN, NAN, NAN),
        ([5, 5, 1], [1, 2, 2], 0.75, 0.5, 0.5, 1.0),  # of 2 ordered pairs 1.5; tau-b 1 / sqrt(2 * 2)
        ([5, 5, 1, 0], [1, 1, 3, 3], 1.0, 4 / math.sqrt(5 * 4), 1.0, 1.0),
        ([4, 4, 4, 1], [2, 1, 3, 3], 4 / 5 - 0.5 / 5, 2 / math.sqrt(3 * 5), 1 / 3, 1.0),
    ],
)
def test_one_list_by_hand(scores, ranks, accuracy, tau, top, bottom):
    found = [measure(scores, ranks) for measure in (pair_accuracy, kendall_tau_b, top_agreement, bottom_agreement)]
    assert found == pytest.approx([accuracy, tau, top, bottom], nan_ok=True)


def test_tau_and_accuracy_are_their_definitions():
    for item in random_lists():
        alike = differently = tied_scores = tied_ranks = 0
        points = []
        for i, j in combinations(range(len(item.ranks)), 2):
            by_score, by_rank = item.scores[i] - item.scores[j], item.ranks[j] - item.ranks[i]
            alike += by_score * by_rank > 0
            differently += by_score * by_rank < 0
            tied_scores += by_score == 0
            tied_ranks += by_rank == 0
            if by_rank:
                points.append(0.5 if by_score == 0 else float(by_score * by_rank > 0))
        total = len(item.ranks) * (len(item.ranks) - 1) / 2
        size = math.sqrt((total - tied_scores) * (total - tied_ranks))
        assert kendall_tau_b(item.scores, item.ranks) == pytest.approx(
            (alike - differently) / size if size else NAN, nan_ok=True
        )
        assert pair_accuracy(item.scores, item.ranks) == pytest.approx(
            sum(points) / len(points) if points else NAN, nan_ok=True
        )


def test_accuracy_and_log_loss_are_those_of_training():
    lists = random_lists(seed=3)
    found = measure_rankings(lists, logit_scale=0.7)
    scores = torch.tensor([score for item in lists for score in item.scores])
    ranks = torch.tensor([rank for item in lists for rank in item.ranks])
    groups = torch.arange(len(lists)).repeat_interleave(torch.tensor([len(item.ranks) for item in lists]))
    accuracy, valid = ops.pair_accuracy(scores, groups, ranks)
    assert found["scores"]["pair_accuracy"] == pytest.approx(accuracy[valid].mean().item(), abs=1e-6)
    losses = ops.pairwise_losses(0.7 * scores, groups, ranks, ties=True)
    assert found["scores"]["log_loss"] == pytest.approx(losses.mean().item(), abs=1e-6)


def test_order_of_answers_and_lists_changes_nothing():
    lists = random_lists(seed=1)
    draw = np.random.default_rng(5)
    turned = []
    for item in (lists[at] for at in draw.permutation(len(lists))):
        order = draw.permutation(len(item.ranks))
        turned.append(
            RankedList(item.prompt, *([x[at] for at in order] for x in (item.scores, item.ranks, item.lengths)))
        )
    first, second = measure_rankings(lists), measure_rankings(turned)
    assert first["scores"] == pytest.approx(second["scores"]) and first["n"] == second["n"]
    for one, other in zip(first["length_bins"], second["length_bins"], strict=True):
        assert one == pytest.approx(other)
    for one, other in zip(first["reliability"], second["reliability"], strict=True):
        assert one == pytest.approx(other)


def test_calibration_by_hand():
    # Two lists: log-odds 2 (right) and 1 (wrong); then three answers with margins 0, 3, 3, the last two tied.
    lists = [
        RankedList("a", [1.0, 0.0], [1, 2], [1, 1]),
        RankedList("b", [0.0, 0.5], [1, 2], [1, 1]),
        RankedList("c", [1.5, 1.5, 0.0], [1, 2, 2], [1, 1, 1]),
    ]
    found = measure_rankings(lists, logit_scale=2.0)
    p = [1 / (1 + math.exp(-x)) for x in (2.0, 1.0, 3.0)]
    brier = [(p[0] - 1) ** 2, p[1] ** 2, (0 + (p[2] - 1) ** 2 + (p[2] - 0.5) ** 2) / 3]
    loss = [-math.log(p[0]), -math.log(1 - p[1])]
    loss.append((math.log(2) - math.log(p[2]) - 0.5 * math.log(p[2]) - 0.5 * math.log(1 - p[2])) / 3)
    # Bins: 0.5, [p1 = 0.731], [p0 = 0.881], [p2 = 0.953 twice, of which 1.5 of 2 came true].
    ece = (0 + p[1] + (1 - p[0]) + 2 / 3 * abs(p[2] - 0.75)) / 3
    assert found["scores"]["brier"] == pytest.approx(sum(brier) / 3)
    assert found["scores"]["log_loss"] == pytest.approx(sum(loss) / 3)
    assert found["scores"]["ece"] == pytest.approx(ece)
    bins = [(round(b["low"], 2), b["accuracy"], b["count"]) for b in found["reliability"]]
    assert bins == [(0.5, 0.5, 1), (0.7, 0.0, 1), (0.85, 1.0, 1), (0.95, 0.75, 2)]
    assert found["n"]["ordered_pairs"] == 4 and found["n"]["tied_pairs"] == 1


def test_bins_have_equal_width_and_the_last_holds_certainty():
    p = np.array([0.5, 0.55, 0.6, 0.649999, 1.0])
    found = reliability(p, np.ones(5), np.ones(5), low=0.5)
    assert [(round(b["low"], 2), b["count"]) for b in found] == [(0.5, 1), (0.55, 1), (0.6, 2), (0.95, 1)]


def test_huge_margins_stay_finite():
    found = measure_rankings([RankedList("a", [1e4, 0.0], [1, 2], [1, 2]), RankedList("b", [0, 1e4], [1, 2], [2, 1])])
    assert found["scores"]["log_loss"] == pytest.approx(5e3) and found["scores"]["brier"] == pytest.approx(0.5)


def test_a_model_that_means_its_probabilities_has_no_calibration_error():
    draw = np.random.default_rng(0)
    margins = draw.normal(size=3_000) * 2
    won = draw.random(3_000) < sigmoid(margins)
    lists = [
        RankedList(str(i), [m, 0.0], [1, 2] if w else [2, 1], [1, 1])
        for i, (m, w) in enumerate(zip(margins, won, strict=True))
    ]
    right = measure_rankings(lists)["scores"]["ece"]
    assert right < 0.04 < measure_rankings(lists, logit_scale=3.0)["scores"]["ece"] - 0.05


def test_midranks_and_correlations_against_numpy():
    draw = np.random.default_rng(2)
    x, y = draw.integers(0, 9, size=200).astype(float), draw.normal(size=200)
    y += 0.2 * x
    for values in (x, y):  # midranks: (values below) + (equal ones + 1) / 2
        literal = [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
        assert midranks(values).tolist() == literal
    prompts = np.arange(200)
    for a, b in ((x, y), (midranks(x), midranks(y)), (1e6 + x, y)):
        assert bootstrap.point(bootstrap.correlation(a, b, prompts), prompts) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert math.isnan(bootstrap.point(bootstrap.correlation(np.full(200, 0.1), y, prompts), prompts))


def test_length_correlation_within_takes_the_lists_means_off():
    # Within each list the longer is worse, but the list of long answers has the higher scores.
    lists = [RankedList("a", [1, 0], [1, 2], [1, 2]), RankedList("b", [11, 10], [1, 2], [11, 12])]
    scores = measure_rankings(lists)["scores"]
    assert scores["length_pearson_score"] == pytest.approx(-1) == scores["length_spearman_score"]
    assert scores["length_pearson_rank"] == pytest.approx(-1)
    assert scores["length_pearson_overall_score"] > 0.9
    assert scores["length_spearman_overall_score"] == pytest.approx(0.6)  # ranks 2 1 4 3 with 1 2 3 4
    assert scores["length_spearman_excess"] == pytest.approx(0) and scores["longer_is_better"] == 0


def test_length_correlation_of_lists_of_unequal_size():
    lists = random_lists(seed=8)
    scores = measure_rankings(lists)["scores"]
    for way, change in (("pearson", np.asarray), ("spearman", midranks)):
        for name in ("scores", "ranks"):
            columns = [[], []]
            for item in lists:
                sign = -1.0 if name == "ranks" else 1.0
                for column, values in zip(columns, (sign * np.array(getattr(item, name)), item.lengths), strict=True):
                    changed = change(np.array(values, float))
                    column.extend(changed - changed.mean())
            expected = np.corrcoef(columns[0], columns[1])[0, 1]
            assert scores[f"length_{way}_{name[:-1]}"] == pytest.approx(expected)


def test_accuracy_by_length_difference():
    differences = np.array([-9.0, -3, -2, -1, 0, 0, 1, 2, 3, 9])
    outcomes = np.array([0, 0, 1, 1, 0.5, 0.5, 1, 1, 1, 1])
    found = accuracy_by_length(differences, outcomes, np.ones(10))
    assert [(b["low"], b["high"], b["accuracy"], b["count"]) for b in found] == [
        (-9, -3, 0.0, 2),
        (-2, -1, 1.0, 2),
        (0, 0, 0.5, 2),
        (1, 2, 1.0, 2),
        (3, 9, 1.0, 2),
    ]
    alike = accuracy_by_length(np.zeros(4), np.array([1, 0, 1, 1]), np.ones(4))
    assert [(b["accuracy"], b["count"]) for b in alike] == [(0.75, 4)]
    assert accuracy_by_length(np.array([]), np.array([]), np.array([])) == []
    lists = random_lists(seed=4)
    scores, bins = measure_rankings(lists), measure_rankings(lists)["length_bins"]
    assert sum(b["count"] for b in bins) == scores["n"]["ordered_pairs"]


def test_undefined_lists_are_counted_and_left_out():
    lists = [
        RankedList("a", [1, 0], [1, 2], [1, 1]),
        RankedList("b", [1, 0], [1, 1], [1, 1]),  # all tied
        RankedList("c", [1, 1], [1, 2], [1, 1]),  # equal scores
    ]
    found = measure_rankings(lists)
    assert (found["n"]["lists_without_order"], found["n"]["lists_without_tau"]) == (1, 2)
    assert found["scores"]["pair_accuracy"] == 0.75 and found["scores"]["kendall_tau"] == 1
    assert math.isnan(found["scores"]["length_pearson_score"])


# ------------------------------------------------------------------------------------------
# Intervals


def test_a_bootstrap_draw_is_the_figure_of_the_drawn_lists():
    lists = random_lists(seed=6)
    names = list(dict.fromkeys(item.prompt for item in lists))
    prompts = np.array([names.index(item.prompt) for item in lists])
    weights = np.random.default_rng(0).integers(0, 3, size=len(names)).astype(float)
    drawn = [item for item, at in zip(lists, prompts, strict=True) for _ in range(int(weights[at]))]
    values = np.array([pair_accuracy(item.scores, item.ranks) for item in lists])
    figure = bootstrap.mean(values, prompts)
    assert figure(weights[None])[0] == pytest.approx(measure_rankings(drawn)["scores"]["pair_accuracy"])

    margin, order = (np.concatenate(x) for x in zip(*(pairs(i.scores, i.ranks) for i in lists), strict=True))
    owner = np.repeat(prompts, [len(item.ranks) * (len(item.ranks) - 1) // 2 for item in lists])
    shares = np.repeat(
        [2 / (len(i.ranks) * (len(i.ranks) - 1)) for i in lists],
        np.bincount(
            np.repeat(np.arange(len(lists)), [len(item.ranks) * (len(item.ranks) - 1) // 2 for item in lists])
        ),
    )
    p = sigmoid(np.abs(margin))
    bins = np.digitize(p, np.linspace(0.5, 1, 11)[1:-1])
    figure = bootstrap.calibration_error(p, (1 + np.sign(margin) * order) / 2, bins, owner, shares)
    assert figure(weights[None])[0] == pytest.approx(measure_rankings(drawn)["scores"]["ece"])


def test_intervals_cover_as_often_as_they_say():
    draw = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        effect = np.repeat(draw.normal(size=40), 3)  # three values a prompt that go together
        values = 1 + effect + 0.3 * draw.normal(size=120)
        prompts = np.repeat(np.arange(40), 3)
        low, high = bootstrap.intervals({"mean": bootstrap.mean(values, prompts)}, prompts, seed, draws=400)["mean"]
        inside += low <= 1 <= high
    assert 0.89 <= inside / 200 <= 0.98  # rows drawn one by one would give about 0.74


def test_intervals_follow_the_seed_and_not_the_block(monkeypatch):
    lists = random_lists(seed=7)
    first = measure_rankings(lists, seed=1)["intervals"]
    assert first == measure_rankings(lists, seed=1)["intervals"] != measure_rankings(lists, seed=2)["intervals"]
    monkeypatch.setattr(bootstrap, "BLOCK", 1000)
    again = measure_rankings(lists, seed=1)["intervals"]
    for name, interval in first.items():
        assert again[name] == pytest.approx(interval), name


def test_one_prompt_has_no_interval():
    found = measure_rankings([RankedList("a", [1, 0], [1, 2], [3, 1])] * 5)
    assert set(found["intervals"].values()) == {None} and found["n"]["prompts"] == 1


# ------------------------------------------------------------------------------------------
# Thumbs


def test_thumbs_by_hand():
    logits, labels = [2.0, 1.0, 0.0, -1.0], [True, False, True, False]
    found = measure_thumbs(logits, labels, [4, 3, 2, 1], ["a", "b", "c", "d"])
    scores = found["scores"]
    assert scores["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert scores["auc"] == pytest.approx(3 / 4)  # 2 > 1, 2 > -1, 0 > -1; 0 < 1
    assert scores["ups"] == 0.5 and found["n"]["ups"] == 2
    p = 1 / (1 + np.exp(-np.array(logits)))
    assert scores["brier"] == pytest.approx(np.mean((p - labels) ** 2))
    loss = ops.thumbs_losses(torch.tensor(logits), torch.tensor(labels)).mean().item()
    assert scores["log_loss"] == pytest.approx(loss)
    assert scores["length_spearman_score"] == pytest.approx(1)
    assert [round(b["low"], 1) for b in found["reliability"]] == [0.2, 0.5, 0.7, 0.8]


def test_auc_is_its_definition_weighted_by_the_draw():
    draw = np.random.default_rng(3)
    scores, labels = draw.integers(0, 6, size=50).astype(float), draw.random(50) < 0.4
    prompts = draw.permutation(np.repeat(np.arange(25), 2))
    weights = draw.integers(0, 3, size=25).astype(float)
    chosen = [at for at in range(50) for _ in range(int(weights[prompts[at]]))]
    wins = [
        float(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in chosen
        for j in chosen
        if labels[i] and not labels[j]
    ]
    assert bootstrap.auc(scores, labels, prompts)(weights[None])[0] == pytest.approx(np.mean(wins))
    none_up = bootstrap.auc(scores, np.zeros(50, bool), prompts)
    assert math.isnan(bootstrap.point(none_up, prompts))
