"""The table's figures by hand, and sentences only where intervals part."""

import numpy as np
import pytest

from rlhf_kit.comparison.figures import BEFORE, COMPARING, Values, chosen, gaps, sentences
from rlhf_kit.comparison.methods import METHODS, Entry
from rlhf_kit.comparison.records import START, Measurement, Place
from rlhf_kit.intervals import DRAWS, crossed, percentiles

PPO = Entry("ppo", METHODS["ppo"], (0.5, 0.1))
BEST = Entry("best_of_n", METHODS["best_of_n"], (2, 4))


def measurement(entry, strength, seed, truth, kl=0.0, scores=None, tax=(), work=None, seconds=1.0, memory=100):
    truth = [float(value) for value in truth]
    answers = {
        "texts": ["a"] * len(truth), "truth": truth, "correct": None, "scores": scores or truth,
        "kl": [kl] * len(truth), "entropy": None, "length": [3] * len(truth),
    }  # fmt: skip
    measured = {"answers": answers, "flops_an_answer": 10.0, "tax": {"sums": list(tax)} if tax else {}}
    measured |= {"seconds": seconds, "memory": memory}
    trained = None if work is None else {"work": {"flops": work}, "seconds": 5.0, "memory": 700}
    return Measurement(Place(entry, strength, seed), measured, trained)


def alternating(size=40, high=1.0, low=0.0):
    return [high if at % 3 else low for at in range(size)]


def test_a_row_by_hand():
    values = Values([
        measurement(START, None, 0, [0, 1, 0, 1], tax=[1, 0]), measurement(START, None, 1, [1, 1, 0, 0], tax=[1, 1]),
        measurement("ppo", 0.5, 0, [1, 1, 1, 1], kl=2.0, work=1000, tax=[0, 0]),
        measurement("ppo", 0.5, 1, [1, 0, 1, 0], kl=4.0, work=3000, tax=[1, 0]),
    ])  # fmt: skip
    row = values.row(("ppo", 0.5))
    assert row.figures["truth"].value == 6 / 8 and row.gains["truth"].value == 2 / 8
    assert row.figures["win"].value == (1 + 0.5 + 1 + 0.5 + 0.5 + 0 + 1 + 0.5) / 8
    assert row.figures["kl"].value == 3.0 and row.figures["kl"].interval == (2.0, 4.0)
    assert row.figures["sums"].value == 1 / 4 and row.gains["sums"].value == 1 / 4 - 3 / 4
    assert row.seeds == (0, 1) and "correct" not in row.figures and "entropy" not in row.figures
    assert (row.training, row.answering, row.compute) == (2000.0, 10.0, 2040.0)
    assert (row.seconds, row.memory) == (5.0, 700)


def test_best_of_n_trains_nothing_and_has_the_starts_weights():
    values = Values([
        measurement(START, None, 0, [0, 1], tax=[1, 0]), measurement("best_of_n", 2, 0, [1, 1], seconds=7.0),
    ])  # fmt: skip
    row = values.row(("best_of_n", 2))
    assert row.training == 0 and row.compute == 20 and row.seconds == 7.0
    assert row.gains["sums"].value == 0 and row.gains["sums"].side == 0


def test_work_that_was_not_counted_is_not_known():
    run = measurement("ppo", 0.5, 0, [1, 1], work=1)
    run = Measurement(run.place, run.measured, {**run.trained, "work": None})
    assert Values([measurement(START, None, 0, [0, 1]), run]).row(("ppo", 0.5)).compute is None


def test_only_seeds_that_both_have_are_compared():
    values = Values([
        measurement(START, None, 0, [0, 0]), measurement(START, None, 1, [5, 5]),
        measurement("ppo", 0.5, 1, [6, 6], work=1),
    ])  # fmt: skip
    assert values.figure(("ppo", 0.5), "truth", BEFORE).value == 1.0
    assert values.figure(BEFORE, "truth", ("ppo", 0.5)).value == -1.0


def test_intervals_draw_prompts_and_runs():
    runs = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    draws = crossed(runs, np.arange(4), 0, 1)  # prompts say nothing here: the means are 0, 1/2 and 1
    assert len(draws) == DRAWS and {*np.unique(draws)} == {0.0, 0.5, 1.0}
    assert np.mean(draws == 0.5) == pytest.approx(0.5, abs=0.05)
    same = crossed(np.array([[0.0, 1.0], [0.0, 1.0]]), np.arange(2), 0, 1)
    assert {*np.unique(same)} == {0.0, 0.5, 1.0} and percentiles(same) == (0.0, 1.0)


def table(gain, size=60):
    """The start, and PPO whose truth is `gain` more at its strength 0.1, with a noise of its own."""
    noise = np.random.default_rng(0).normal(0, 0.5, size)
    truth = np.array(alternating(size))
    rows = []
    for seed in (0, 1):
        rows.append(measurement(START, None, seed, truth, tax=[1, 0] * 20))
        rows.append(measurement("ppo", 0.5, seed, truth - 1, kl=1.0, scores=[0.0] * size, work=1, tax=[1, 0] * 20))
        rows.append(
            measurement("ppo", 0.1, seed, truth + gain + noise, kl=2.0, scores=[1.0] * size, work=1, tax=[0, 0] * 20)
        )
    return Values(rows)


def test_a_claim_is_made_where_its_interval_leaves_out_0_and_nowhere_else():
    clear = [english for english, _ in sentences(table(0.5), [PPO], ["sums"], gaps(table(0.5), [PPO]))]
    assert any(line.startswith("ppo (kl_coef 0.1) against the start: more truth, +0.") for line in clear)
    assert any("fewer right in sums (the alignment tax), −0.5" in line for line in clear)
    unclear = [english for english, _ in sentences(table(0.0), [PPO], [], gaps(table(0.0), [PPO]))]
    assert "ppo (kl_coef 0.1) against the start: no difference shows in truth," in unclear[0]
    assert not any("tax" in line or "fooled" in line for line in unclear)


def test_the_strength_is_chosen_on_prompts_that_do_not_compare():
    """Truth on every other prompt speaks for one strength, on the rest for the other."""
    even, odd = [1.0, 0.0] * 20, [0.0, 1.0] * 20
    values = Values([
        measurement(START, None, 0, [0.0] * 40), measurement("ppo", 0.5, 0, even, work=1),
        measurement("ppo", 0.1, 0, odd, work=1),
    ])  # fmt: skip
    key = chosen(values, PPO)
    assert key == ("ppo", 0.5) and values.figure(key, "truth", part=COMPARING).value == 0.0
    assert "no difference shows in truth, +0.000" in sentences(values, [PPO], [], gaps(values, [PPO]))[0][0]


def test_methods_that_part_and_those_that_do_not_are_told():
    noise = np.random.default_rng(1).normal(0, 0.3, 60)

    def at(gain):
        return Values([
            measurement(START, None, 0, [0.0] * 60), measurement("ppo", 0.5, 0, noise, work=1),
            measurement("best_of_n", 2, 0, np.array(alternating(60, 0.1, -0.2)) + gain),
        ])  # fmt: skip

    entries = [Entry("ppo", METHODS["ppo"], (0.5,)), Entry("best_of_n", METHODS["best_of_n"], (2,))]
    parted = [english for english, _ in sentences(at(1.0), entries, [], gaps(at(1.0), entries))]
    assert "ppo (kl_coef 0.5): less truth than best_of_n." in parted
    assert "best_of_n (n 2): more truth than ppo." in parted
    there, back = (gaps(at(1.0), entries)[pair] for pair in (("ppo", "best_of_n"), ("best_of_n", "ppo")))
    assert there.side == -1 and (back.value, back.interval) == (-there.value, (-there.interval[1], -there.interval[0]))
    alike = [english for english, _ in sentences(at(0.0), entries, [], gaps(at(0.0), entries))]
    assert "ppo (kl_coef 0.5): no difference in truth shows from best_of_n." in alike


def test_a_reward_model_is_fooled_where_its_score_rises_and_truth_falls():
    rows = [measurement(START, None, 0, [0.5] * 40)]
    rows.append(measurement("ppo", 0.5, 0, alternating(40), kl=1.0, scores=alternating(40), work=1))
    further = [value - 0.5 for value in alternating(40)]
    rows.append(measurement("ppo", 0.1, 0, further, kl=5.0, scores=[value + 1 for value in alternating(40)], work=1))
    told = [english for english, _ in sentences(Values(rows), [PPO], [], {})]
    assert any("kl_coef 0.5 → 0.1: the reward model is being fooled" in line for line in told)
