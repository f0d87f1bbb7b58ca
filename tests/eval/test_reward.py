"""`rlhf-kit eval reward`: the figures of a model on data, however they are computed, and what is written of them."""

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import toy
from datasets import Dataset
from peft import LoraConfig
from ranks import launched

from rlhf_kit.cli import main
from rlhf_kit.data.labelers import agreement
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.eval.reward import held_out
from rlhf_kit.eval.reward.ranking import RankedList, Rankings
from rlhf_kit.eval.reward.scoring import BATCHES, load_scorer, score_each, score_lists
from rlhf_kit.eval.reward.task import Reward, evaluate_reward
from rlhf_kit.models import heads
from rlhf_kit.models.adapters import save, wrap
from rlhf_kit.storage import as_json

KINDS = ("ranked", "pairs", "thumbs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved reward model."""
    return toy.save_model(tmp_path_factory.mktemp("model"))


def literal_accuracy(model, rows):
    """Mean over lists of the share of pairs in order, each answer scored by itself."""
    means = []
    for row in rows:
        scores = [
            heads.score_texts(model, toy.byte_tokenizer(), [row["prompt"]], [text]) for text in row["completions"]
        ]
        points = []
        for better, first in zip(row["ranks"], scores, strict=True):
            for worse, second in zip(row["ranks"], scores, strict=True):
                if better < worse:
                    points.append(float(first > second))
        means.append(sum(points) / len(points))
    return sum(means) / len(means)


def test_accuracy_is_the_literal_one_and_scores_are_calibrated():
    model, rows = toy.reward_model(), toy.ranked()
    found = evaluate_reward(model, toy.byte_tokenizer(), rows)
    assert found["kind"] == "ranked" and found["n"]["lists"] == 12 and found["n"]["prompts"] == 6
    assert found["scores"]["pair_accuracy"] == pytest.approx(literal_accuracy(model, rows))
    for row, item in zip(rows, found["items"], strict=True):
        prompts = [row["prompt"]] * len(row["completions"])
        expected = heads.score_texts(model, toy.byte_tokenizer(), prompts, row["completions"])
        torch.testing.assert_close(torch.tensor(item["scores"]), expected, atol=1e-5, rtol=1e-5)
        assert item["lengths"] == [1 + len(text) for text in row["completions"]]  # bytes, and the space before
        assert item["ranks"] == row["ranks"]


@pytest.mark.parametrize("rows", [toy.ranked(), toy.thumbs()], ids=["ranked", "thumbs"])
def test_the_batch_size_changes_nothing(rows):
    model, tokenizer = toy.reward_model(), toy.byte_tokenizer()
    whole = evaluate_reward(model, tokenizer, rows, batch_size=64)
    for size in (1, 3):
        assert toy.almost(evaluate_reward(model, tokenizer, Dataset.from_list(rows), batch_size=size), whole)


def test_the_calibration_of_a_model_changes_no_figure_but_the_scores():
    """Scores are scaled after training; what they claim stays in the log-odds that were trained."""
    tokenizer, raw, scaled = toy.byte_tokenizer(), toy.reward_model(gain=1, bias=0), toy.reward_model(gain=5, bias=-3)
    for rows in (toy.ranked(), toy.thumbs()):
        first, second = (evaluate_reward(model, tokenizer, rows) for model in (raw, scaled))
        assert toy.almost(first["scores"], second["scores"]) and toy.almost(
            first["reliability"], second["reliability"]
        )
        assert not toy.almost(first["items"][0]["scores"], second["items"][0]["scores"])


def test_equal_texts_have_equal_scores_whatever_stands_beside_them():
    seen = []

    def score(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return torch.arange(len(seen) - len(completions), len(seen)).float()

    lists = [("a", ["x", "y", "x"]), ("bb", ["x"]), ("a", ["y", "z"])]
    found = score_lists(score, lists, batch_size=1)
    assert len(seen) == 4 == len(set(seen))
    assert found[0][0] == found[0][2] != found[1][0] and found[0][1] == found[2][0]
    assert score_lists(score, [("a", [])], batch_size=1) == [[]]


def test_scores_come_as_they_are_made():
    """A kill loses what is scored at a time, not what is done."""
    scored = []

    def score(prompts, completions):
        scored.append(len(completions))
        return torch.zeros(len(completions))

    lists = [(f"q{number}", ["x", "y"]) for number in range(3 * BATCHES)]
    each = score_each(score, lists, batch_size=2)
    assert scored == [] and next(each)[1] == [0.0, 0.0] and scored == [2 * BATCHES]
    assert len(list(each)) == len(lists) - 1 and scored == [2 * BATCHES] * 3


@pytest.mark.parametrize("rows", [toy.ranked(), toy.thumbs()], ids=["ranked", "thumbs"])
def test_the_mean_of_the_items_is_the_figure(folder, tmp_path, rows):
    found, items, _ = measured(folder, tmp_path, rows)
    of_items = {"ranked": 4, "thumbs": 2}[found["details"]["kind"]]
    assert len(items[0]["scores"]) == of_items
    for name in items[0]["scores"]:
        known = [item["scores"][name] for item in items if item["scores"][name] is not None]
        assert found["scores"][name] == pytest.approx(sum(known) / len(known)), name


def test_what_has_nothing_to_measure_is_kept_and_not_drawn(folder, tmp_path):
    """The figures and their intervals are of the lists that are left, to the last digit."""
    rows = toy.ranked() + [{"prompt": "alone", "completions": ["x" * toy.CONTEXT, "bad"], "ranks": [1, 2]}]
    found, items, _ = measured(folder, tmp_path, rows)
    assert len(items) == 13 and items[-1]["details"]["scores"][0] is None
    assert set(items[-1]["scores"].values()) == {None}
    assert found["n"] == {"items": 12, "clusters": 6} and found["details"]["n"]["lists_left_out"] == 1
    columns = [[item["details"][name] for name in ("scores", "ranks", "lengths")] for item in items]
    lists = [RankedList(item["cluster"], *of) for item, of in zip(items, columns, strict=True)]
    expected = as_json(Rankings(lists[:-1], 0.5).measure(seed=0))
    assert found["scores"] == expected["scores"]
    assert {name: list(each) for name, each in expected["intervals"].items()} == found["intervals"]


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_refused_by_its_row(score, monkeypatch):
    """Kept as null it would pass for that of a completion too long to be read."""
    monkeypatch.setattr(held_out.heads, "score_texts", lambda *_, **__: torch.tensor([1.0, 0.5, score]))
    rows = [{"prompt": "q", "completions": ["good", "bad", "no"], "ranks": [1, 2, 3]}]
    with pytest.raises(UserError, match=rf"Row 1: the reward model gives the scores 1.0, 0.5, {score}. Its weights"):
        evaluate_reward(toy.reward_model(), toy.byte_tokenizer(), rows)


def test_prompts_that_are_cut_and_answers_that_do_not_fit_are_counted():
    long = "x" * toy.CONTEXT
    rows = [
        {"prompt": "p" * 60, "completions": ["good", "bad"], "ranks": [1, 2]},  # both prompts lose their beginning
        {"prompt": "q", "completions": ["good", long, "bad"], "ranks": [1, 2, 3]},
        {"prompt": "r", "completions": [long, "bad"], "ranks": [1, 2]},  # one answer is left
    ]
    found = evaluate_reward(toy.reward_model(), toy.byte_tokenizer(), rows)
    counts = {name: found["n"][name] for name in ("lists", "lists_left_out", "prompts_cut", "completions_too_long")}
    assert counts == {"lists": 2, "lists_left_out": 1, "prompts_cut": 2, "completions_too_long": 2}
    assert [score is None for score in found["items"][1]["scores"]] == [False, True, False]
    assert found["n"]["ordered_pairs"] == 2
    with pytest.raises(UserError, match=r"No list has two completions that fit .*\(1 completions too long\)"):
        evaluate_reward(toy.reward_model(), toy.byte_tokenizer(), rows[2:])
    with pytest.raises(UserError, match="no rows"):
        evaluate_reward(toy.reward_model(), toy.byte_tokenizer(), [])


def test_the_ceiling_of_several_labelers():
    rows = [
        {"prompt": f"q{i}", "completions": ["good", "bad", "so so"], "ranks": ranks, "labeler": who}
        for i in range(6)
        for who, ranks in (("ann", [1, 2, 3]), ("bob", [1, 3, 2] if i < 2 else [1, 2, 3]))
    ]
    found = evaluate_reward(toy.reward_model(), toy.byte_tokenizer(), rows)
    told = agreement(rows)
    assert 0.5 < told.ceiling < 1 and found["ceiling"]["ceiling"] == told.ceiling
    assert found["ceiling"]["of_ceiling"] == pytest.approx(found["scores"]["pair_accuracy"] / told.ceiling)
    assert evaluate_reward(toy.reward_model(), toy.byte_tokenizer(), rows[::2])["ceiling"] is None  # ann alone
    assert found["n"]["prompts"] == 6 and found["n"]["lists"] == 12


# ------------------------------------------------------------------------------------------
# Models


def test_an_adapter_is_measured_with_its_head(tmp_path, folder):
    base, _ = load_scorer(folder)
    model = wrap(base, LoraConfig(r=2, init_lora_weights=False))
    model.base_model.model.score.modules_to_save["default"].weight.data.normal_()
    before = heads.score_texts(model, toy.byte_tokenizer(), ["a", "b"], ["good", "bad"])
    save(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")  # without the config beside it
    for name in ("ours", "peft"):
        toy.byte_tokenizer().save_pretrained(tmp_path / name)
        loaded, tokenizer = load_scorer(str(tmp_path / name))
        after = heads.score_texts(loaded, tokenizer, ["a", "b"], ["good", "bad"])
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_a_language_model_is_refused(tmp_path, policy, tokenizer_folder):
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not a reward model: it is a GPT2LMHeadModel"):
        load_scorer(str(tmp_path))


def test_a_model_that_reads_padding_is_refused(tmp_path, capsys):
    folder, data = toy.save_model(tmp_path / "model", toy.padding_reader()), tmp_path / "rows.jsonl"
    argv = ["reward", "--model", folder, "--data", toy.write_lines(data, toy.ranked(2))]
    assert main(["eval", *argv, "--output", str(tmp_path / "out")]) == 2
    assert "a score must not depend on padding" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


# ------------------------------------------------------------------------------------------
# The command


class Page(HTMLParser):
    """Checks that tags close in order; keeps tags and words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], set(), []
        self.feed(text)
        assert not self.open
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def measured(folder, tmp_path, rows, *more, out="out"):
    data, out = toy.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / out
    assert main(["eval", "reward", "--model", folder, "--data", data, "--output", str(out), *more]) == 0
    lines = [json.loads(line) for line in (out / "items.jsonl").read_text("utf-8").splitlines()]
    return json.loads((out / "results.json").read_text("utf-8")), lines, (out / "report.html").read_text("utf-8")


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def test_the_command_writes_what_was_measured(folder, tmp_path, capsys):
    rows = toy.ranked()
    told, items, html = measured(folder, tmp_path, rows, "--batch-size", "5")
    said = capsys.readouterr().out
    model, tokenizer = load_scorer(folder)
    expected = evaluate_reward(model, tokenizer, load(str(tmp_path / "rows.jsonl"), KINDS)[0])
    details, settings = told["details"], told["settings"]
    assert toy.almost(told["scores"], as_json(expected["scores"]))
    assert toy.almost(told["intervals"], as_json(expected["intervals"]))
    assert details["n"] == expected["n"] and told["reportable"] is True
    assert told["n"] == {"items": 12, "clusters": 6} and told["groups"] == {}
    for name in ("kind", "reliability", "length_bins", "ceiling"):
        assert toy.almost(details[name], as_json(expected[name])), name
    assert (settings["task"], settings["protocol"], settings["version"]) == ("reward", "reward", 1)
    assert settings["options"]["calibration"] == {"gain": 2.0, "bias": 0.5, "logit_scale": 0.5, "logit_zero": 0.5}
    assert details["logit_scale"] == pytest.approx(0.5)
    assert {"python", "rlhf_kit", "torch", "transformers"} <= set(told["versions"]) and told["seconds"] > 0
    for item, one in zip(items, expected["items"], strict=True):
        about = {"row": int(item["id"]), "prompt": item["cluster"], "tau": item["scores"]["kendall_tau"]}
        assert toy.almost(item["details"] | about, as_json(one))
    assert items[0]["cluster"] == items[1]["cluster"] != items[2]["cluster"]
    json.loads((tmp_path / "out/results.json").read_text("utf-8"), parse_constant=no_constants)
    written = [".rlhf_kit", "items.jsonl", "report.html", "results.json", "settings.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert f"{told['scores']['pair_accuracy']:.3f}" in said and "成對準確率" in said and "12 lists" in said
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & page.tags and not re.search(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme:dark" in html and f"{told['scores']['pair_accuracy']:.3f}" in page.text
    titles = set(re.findall(r'aria-label="([^"]+)"', html))
    assert len(titles) == 4 and any("Reliability" in title for title in titles)
    assert "the score" in page.text.lower() and "長度" in page.text


def test_a_limited_run_says_that_it_is_no_result(folder, tmp_path, capsys):
    told, items, html = measured(folder, tmp_path, toy.ranked(), "--limit", "3")
    assert told["reportable"] is False and told["settings"]["limit"] == 3 and len(items) == 3 == told["n"]["items"]
    assert "not a result" in capsys.readouterr().out and "no result to report" in Page(html).text


def test_thumbs_and_pairs_are_measured_too(folder, tmp_path, capsys):
    told, items, html = measured(folder, tmp_path, toy.thumbs())
    assert told["details"]["kind"] == "thumbs" == told["settings"]["options"]["kind"]
    assert 0 <= told["scores"]["auc"] <= 1
    assert Page(html).text and items[0]["details"]["label"] is False
    pairs = [{"prompt": f"q{i}", "chosen": "good", "rejected": f"bad {i}"} for i in range(4)]
    told, items, _ = measured(folder, tmp_path, pairs, out="pairs")
    assert told["settings"]["options"]["kind"] == "pairs" and told["details"]["n"]["ordered_pairs"] == 4
    assert items[0]["details"]["ranks"] == [1, 2]


def test_what_cannot_be_told_is_null_and_a_dash(folder, tmp_path, capsys):
    """One list of answers of one length: no interval, no correlation."""
    told, _, html = measured(folder, tmp_path, [{"prompt": "q", "completions": ["yes", "no!"], "ranks": [1, 2]}])
    assert told["scores"]["length_pearson_score"] is None and told["intervals"]["pair_accuracy"] is None
    assert "–" in Page(html).text and "do not vary enough" in Page(html).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{folder}", "--data", "{tmp}/none.jsonl"], "none.jsonl does not exist"),
        (["--model", "{tmp}/none", "--data", "{data}"], "no folder"),
        (["--model", "{folder}", "--data", "{data}", "--output", "{data}"], "is a file; give a folder"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, folder, tmp_path, capsys):
    data = toy.write_lines(tmp_path / "rows.jsonl", toy.ranked(2))
    given = [argument.format(folder=folder, tmp=tmp_path, data=data) for argument in arguments]
    assert main(["eval", "reward", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rlhf-kit eval reward: ") and message in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--batch-size", "x"], ["--bath-size", "3"]])
def test_wrong_options_are_refused(arguments, capsys):
    assert main(["eval", "reward", "--model", "m", "--data", "d", *arguments]) == 2
    assert arguments[0][:6] in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = """
import sys
from rlhf_kit.cli import main
for argv in (["eval", "--help"], ["eval", "reward", "--help"], ["score", "--help"]):
    assert main(argv) == 0
print("HEAVY", sorted({"torch", "transformers", "datasets", "numpy"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY []"
    assert "獎勵模型的排序與人一致嗎？" in ended.stdout


# ------------------------------------------------------------------------------------------
# Resumed and compared


class Cut(Exception):
    pass


def cut_short(monkeypatch, after):
    """The next measurement ends with an exception after so many items."""
    ask = Reward.ask

    def first(self, model, ids):
        for number, item in enumerate(ask(self, model, ids)):
            if number == after:
                raise Cut
            yield item

    monkeypatch.setattr(Reward, "ask", first)


@pytest.mark.parametrize("rows", [toy.ranked(), toy.thumbs()], ids=["ranked", "thumbs"])
def test_an_interrupted_measurement_scores_what_is_left(folder, tmp_path, rows, monkeypatch, capsys):
    whole, items, html = measured(folder, tmp_path, rows, "--batch-size", "3", out="whole")
    argv = ["eval", "reward", "--model", folder, "--data", str(tmp_path / "rows.jsonl"), "--output"]
    argv += [str(tmp_path / "out"), "--batch-size", "3"]
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_short(patch, after=5)
        main(argv)
    kept = [json.loads(line) for line in (tmp_path / "out/items-0.jsonl").read_text().splitlines()]
    assert len(kept) == 5 and not (tmp_path / "out/results.json").exists()
    capsys.readouterr()
    assert main([*argv, "--dry_run"]) == 0 and f"of {len(rows)} rows" in (said := capsys.readouterr().out)
    assert "5 done already" in said
    scored = []
    monkeypatch.setattr(held_out.heads, "score_texts", counting(held_out.heads.score_texts, scored))
    again, resumed, _ = measured(folder, tmp_path, rows, "--batch-size", "3")
    done = [item["cluster"] for item in kept]
    whole_prompts = {name for name in done if done.count(name) == 2}  # a prompt's two lists are scored in one go
    left = [row for row, item in zip(rows, items, strict=True) if item["cluster"] not in whole_prompts]
    assert len(left) < len(rows)
    expected = {(row["prompt"], text) for row in left for text in row.get("completions", [row.get("completion")])}
    assert sorted(scored) == sorted(expected)
    assert again["resumed"] == 5 and [item["id"] for item in resumed] == [item["id"] for item in items]
    for name in ("scores", "intervals", "n", "details"):
        assert toy.almost(again[name], whole[name]), name
    assert toy.almost(resumed, items)


def counting(score, scored):
    def counted(model, tokenizer, prompts, completions, **more):
        scored.extend(zip(prompts, completions, strict=True))
        return score(model, tokenizer, prompts, completions, **more)

    return counted


def test_a_finished_measurement_loads_no_model(folder, tmp_path, monkeypatch):
    first, items, html = measured(folder, tmp_path, toy.ranked())
    monkeypatch.setattr(Reward, "load", lambda *_: pytest.fail("loaded"))
    again, same, page = measured(folder, tmp_path, toy.ranked())
    assert again["resumed"] == 12 and same == items
    assert [first[name] for name in ("scores", "intervals", "details")] == [
        again[name] for name in ("scores", "intervals", "details")
    ]


def test_another_calibration_is_another_measurement(folder, tmp_path, capsys):
    """An adapter's is in a file of its own, which the hash of a model does not read."""
    base, tokenizer = load_scorer(folder)
    model = wrap(base, LoraConfig(r=2))
    save(model, tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    measured(str(tmp_path / "ours"), tmp_path, toy.ranked())
    path = tmp_path / "ours" / "reward_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reward_logit_scale": 0.25}))
    data = ["--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    assert main(["eval", "reward", "--model", str(tmp_path / "ours"), *data]) == 2
    assert "holds items measured with other settings (option calibration" in capsys.readouterr().err


def test_two_reward_models_are_compared_list_by_list(folder, tmp_path, capsys):
    other = toy.save_model(tmp_path / "other", toy.reward_model(seed=1))
    first, items, _ = measured(folder, tmp_path, toy.ranked(), out="a")
    second, others, _ = measured(other, tmp_path, toy.ranked(), out="b")
    capsys.readouterr()
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["score"]: row for row in found["comparisons"]}
    assert list(rows) == ["pair_accuracy", "kendall_tau", "top1", "bottom1"] and found["other_prompts"] == 0
    for name in ("pair_accuracy", "top1", "bottom1"):
        row = rows[name]
        assert (row["first"], row["second"]) == pytest.approx((first["scores"][name], second["scores"][name]))
        assert row["difference"] == pytest.approx(row["second"] - row["first"]) and row["clusters"] == 6
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert rows["pair_accuracy"]["difference"] != 0
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert f"{first['scores']['pair_accuracy']:.3f}" in said and f"{rows['top1']['difference']:+.3f}" in said


def test_a_suite_refuses_it_by_name(tmp_path, capsys):
    entry = {"name": "judge", "command": "reward", "options": {"data": "world:ranked"}, "figure": "pair_accuracy"}
    (tmp_path / "s.yaml").write_text(json.dumps([{**entry, "higher_is_better": True}]))
    assert main(["eval", "suite", "--models", "m=nowhere", "--suite", str(tmp_path / "s.yaml")]) == 2
    said = capsys.readouterr().err
    assert "entry 1 (judge): command 'reward' measures reward models, and the models of a suite are language" in said


# ------------------------------------------------------------------------------------------
# Two processes


def test_two_processes_measure_as_one_and_resume_what_one_began(folder, tmp_path, monkeypatch):
    told = {}
    for kind, rows in (("ranked", toy.ranked(13)), ("thumbs", toy.thumbs(9))):
        (tmp_path / kind).mkdir()
        told[kind], *_ = measured(folder, tmp_path / kind, rows)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_short(patch, after=3)
        measured(folder, tmp_path / "ranked", toy.ranked(13), out="two")
    assert launched(__file__, folder, tmp_path).count("Written") == 2
    for kind, one in told.items():
        two = json.loads((tmp_path / kind / "two/results.json").read_text("utf-8"))
        assert two["resumed"] == {"ranked": 3, "thumbs": 0}[kind]
        for name in ("scores", "intervals", "n", "details"):
            assert toy.almost(one[name], two[name]), name
        for rank in (0, 1):  # from Python every process gets the figures of all
            in_memory = json.loads((tmp_path / kind / f"{rank}.json").read_text("utf-8"))
            assert toy.almost(in_memory["intervals"], one["intervals"]) and in_memory["n"] == one["details"]["n"]
            assert [item["row"] for item in in_memory["items"]] == list(range(len(in_memory["items"])))
        first, second = ((tmp_path / kind / out / "items.jsonl").read_text().splitlines() for out in ("out", "two"))
        assert toy.almost([json.loads(line) for line in first], [json.loads(line) for line in second])


if __name__ == "__main__":
    for made in ("ranked", "thumbs"):
        place = Path(sys.argv[2], made)
        argv = ["--model", sys.argv[1], "--data", str(place / "rows.jsonl"), "--output", str(place / "two")]
        assert main(["eval", "reward", *argv]) == 0
        in_memory = evaluate_reward(*load_scorer(sys.argv[1]), load(argv[3], KINDS)[0])
        (place / f"{os.environ['RANK']}.json").write_text(json.dumps(as_json(in_memory)))
