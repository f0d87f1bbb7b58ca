"""Two results on the same items: differences, intervals and McNemar's test by hand; nothing compared that differs."""

import json
import math
from dataclasses import replace
from math import comb

import pytest

from rlhf_kit import cli
from rlhf_kit.errors import UserError
from rlhf_kit.eval.compare import compare, compare_folders, mcnemar
from rlhf_kit.eval.items import Item, Run, Settings, percentages


def main(argv):
    return cli.main(["eval", "compare", *argv])


SETTINGS = Settings("toy", "plain", 1, "a/model", "m0", "data.json", "d0", seed=0, options={"shots": 0})


def items(scores, clusters=None, group=lambda at: "", name="em"):
    return [
        Item(str(at), str(at if clusters is None else clusters[at]), f"p{at}", "", "", {name: score}, group(at))
        for at, score in enumerate(scores)
    ]


def write(folder, made, settings=SETTINGS):
    with Run(folder, settings, [item.id for item in made]) as run:
        for item in made:
            run.add(item)
    run.finish()
    return folder


@pytest.mark.parametrize("first, second", [(1, 5), (5, 1), (3, 3), (0, 1), (0, 10), (12, 40), (0, 0)])
def test_mcnemar_is_the_binomial_test(first, second):
    thrown = first + second
    chances = [comb(thrown, heads) / 2**thrown for heads in range(thrown + 1)]
    expected = sum(chance for chance in chances if chance <= chances[first] * (1 + 1e-9))  # as unlikely or more so
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_of_many_items():
    assert mcnemar(4800, 5200) == pytest.approx(math.erfc((400 - 1) / 100 / math.sqrt(2)), rel=0.02)  # normal limit
    assert mcnemar(5000, 5000) == 1.0


def test_a_difference_by_hand():
    one, two = items([1, 1, 0, 0, 0, 1]), items([1, 0, 1, 1, 1, 1])
    (found,) = compare(one, two, {"em": 100.0})
    assert (found.first, found.second, found.difference) == pytest.approx((50, 500 / 6, 200 / 6))
    assert (found.items, found.clusters, found.only_first, found.only_second) == (6, 6, 1, 3)
    assert found.p == pytest.approx(2 * (1 + 4) / 16)
    low, high = found.interval
    assert low < 0 < high  # four changed items are no proof


def test_pairing_and_stories_decide_how_wide_an_interval_is():
    """Everywhere 1 better: without pairing the spread of the items would hide it. Whole stories spread more."""
    hard = [at % 7 / 10 for at in range(42)]
    (found,) = compare(items(hard), items([value + 0.1 for value in hard]), {})
    assert found.interval == pytest.approx((0.1, 0.1)) and found.p is None
    better = [1] * 21 + [0] * 21
    alone, (stories,) = (
        compare(items([0] * 42), items(better), {})[0],
        compare(items([0] * 42, [at // 7 for at in range(42)]), items(better, [at // 7 for at in range(42)]), {}),
    )
    assert stories.clusters == 6
    assert stories.interval[1] - stories.interval[0] > 2 * (alone.interval[1] - alone.interval[0])
    (single,) = compare(items([0, 1], "aa"), items([1, 1], "aa"), {})
    assert single.interval is None and single.difference == 0.5


def test_groups_and_items_without_a_score():
    def group(at):
        return "ab"[at % 2]

    one, two = items([0, 0, math.nan, 1], group=group), items([1, 0, 1, 0], group=group)
    found = {comparison.group: comparison for comparison in compare(one, two, {})}
    assert list(found) == ["", "a", "b"]
    assert (found[""].items, found["a"].items, found["b"].items) == (3, 1, 2)
    assert found["a"].difference == 1.0 and found["b"].difference == -0.5
    nothing = items([math.nan] * 2)
    assert compare(nothing, nothing, {}) == []


def test_other_items_are_not_compared():
    with pytest.raises(ValueError, match="different items"):
        compare(items([1, 0]), items([1, 0, 1]), {})
    with pytest.raises(ValueError, match="different items"):
        compare(items([1, 0], "ab"), items([1, 0], "aa"), {})


def test_folders(tmp_path, capsys):
    first = write(tmp_path / "a", items([1, 0, 0, 0]))
    second = [replace(item, prompt_hash=f"q{at}") for at, item in enumerate(items([1, 1, 1, 0]))]
    write(tmp_path / "b", second, replace(SETTINGS, model="b/model", model_hash="m1", options={"shots": 2}))
    assert main([str(first), str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reportable"] and found["other_prompts"] == 4
    assert found["settings"] == {
        "model": ["a/model", "b/model"],
        "model_hash": ["m0", "m1"],
        "options": [{"shots": 0}, {"shots": 2}],
    }
    (row,) = found["comparisons"]
    assert (row["score"], row["first"], row["second"], row["p"]) == ("em", 25.0, 75.0, 0.5)
    assert main([str(first), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "+50.00" in said and "0/2" in said and "a/model | b/model" in said and "toy, plain 1" in said


def test_a_score_that_is_no_percentage_keeps_its_unit(tmp_path):
    folders = []
    for name, nll in (("a", 3.0), ("b", 2.5)):
        made = items([nll, nll], name="nll")
        with Run(tmp_path / name, SETTINGS, ["0", "1"]) as run:
            for item in made:
                run.add(item)
        run.finish(figures=lambda items, clusters: {})  # what is reported is something else, such as a perplexity
        folders.append(tmp_path / name)
    (row,) = compare_folders(*folders)["comparisons"]
    assert (row["first"], row["difference"]) == (3.0, -0.5)


def test_a_score_that_is_told_by_group_alone_is_compared_by_group_alone(tmp_path):
    def figures(items, clusters):
        return percentages(items, clusters) if len({item.group for item in items}) == 1 else {}

    for name, scores in (("a", [0, 1, 0, 1]), ("b", [1, 1, 0, 0])):
        with Run(tmp_path / name, SETTINGS, list("0123")) as run:
            for item in items(scores, group=lambda at: f"task/{at // 2}-shot"):
                run.add(item)
        run.finish(figures)
    rows = compare_folders(tmp_path / "a", tmp_path / "b")["comparisons"]
    assert [(row["group"], row["difference"]) for row in rows] == [("task/0-shot", 50.0), ("task/1-shot", -50.0)]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"task": "coqa"}, "task 'toy' and 'coqa'"),
        ({"protocol": "other"}, "protocol 'plain' and 'other'"),
        ({"version": 2}, "version 1 and 2"),
        ({"data_hash": "d1"}, "data_hash 'd0' and 'd1'"),
        ({"limit": 2}, "limit None and 2"),
    ],
)
def test_other_measurements_are_refused_in_one_sentence(tmp_path, capsys, change, told):
    write(tmp_path / "a", items([1, 0]))
    write(tmp_path / "b", items([1, 1]), replace(SETTINGS, **change))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and told in said.err and said.err.count("\n") == 1


def test_limited_results_say_so(tmp_path, capsys):
    for name in "ab":
        write(tmp_path / name, items([1, 0]), replace(SETTINGS, limit=2))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "not reportable" in capsys.readouterr().out


def test_folders_without_results(tmp_path, capsys):
    assert main([str(tmp_path / "none"), str(tmp_path)]) == 2
    assert "rlhf-kit eval compare: " in capsys.readouterr().err
    write(tmp_path / "a", items([1, 0]))
    write(tmp_path / "b", items([1, 0]))
    lines = (tmp_path / "b/items.jsonl").read_text().splitlines()
    (tmp_path / "b/items.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(UserError, match="hold different items"):
        compare_folders(tmp_path / "a", tmp_path / "b")
