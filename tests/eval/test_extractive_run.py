"""`rlhf-kit eval extractive`: fine-tune, predict, score, go on after a kill; its files, its page, its refusals."""

import json
import re
import sys

import numpy as np
import pytest
import transformers
from toy_reader import saved_reader, squad_file, world_questions

from rlhf_kit import cli
from rlhf_kit.data.references import read_predictions, read_squad
from rlhf_kit.eval import runner, scorers
from rlhf_kit.eval.extractive import task as module
from rlhf_kit.eval.extractive.data import Question
from rlhf_kit.eval.extractive.page import marked
from rlhf_kit.eval.extractive.predict import Prediction
from rlhf_kit.eval.extractive.spans import Spans
from rlhf_kit.eval.extractive.task import version
from rlhf_kit.eval.predictions import score_squad2

WORLD = ["--data", "world:squad_zh", "--scorer", "drcd", "--max-length", "64", "--limit", "20"]


def main(*argv):
    return cli.main(["eval", "extractive", *map(str, argv)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_reader(tmp_path_factory.mktemp("reader"))


def read(folder, name="results.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_the_world_is_measured_and_its_files_are_those_of_the_scorers(model, tmp_path, capsys):
    assert main("--model", model, *WORLD, "--output", tmp_path) == 0
    said = capsys.readouterr().out
    assert "scorer drcd" in said and "--limit was given" in said and "nbest.json" in said
    found = read(tmp_path)
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(items) == 20 and not found["reportable"]
    assert found["details"]["scorer"] == "drcd" and found["settings"]["options"]["split"] == "test"
    assert found["settings"]["options"]["step"] == 128 and found["details"]["references_a_question"] == 1
    assert found["details"]["windows"] >= 20 and found["details"]["human"] is None
    scores = [scorers.drcd(item["answer"], item["details"]["references"]) for item in items]
    assert found["scores"]["f1"] == pytest.approx(100 * sum(score.f1 for score in scores) / 20)
    assert sum(part["n"]["items"] for part in found["groups"].values()) == 20
    assert set(found["groups"]) == {item["group"] for item in items}
    predictions, n_best = read(tmp_path, "predictions.json"), read(tmp_path, "nbest.json")
    assert predictions == {item["id"]: item["answer"] for item in items}
    assert all(n_best[name][0]["text"] == text for name, text in predictions.items())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="sample"') == sum(item["scores"]["em"] < 1 for item in items)
    assert "<script" not in page and "http" not in page


def test_training_in_a_pipe_is_quiet(model, tmp_path, capfd, monkeypatch):
    (handler, *_) = transformers.utils.logging.get_logger("transformers").handlers
    monkeypatch.setattr(handler, "stream", sys.stderr)  # it has that of its import, which pytest has replaced
    train = ["--train-data", "world:squad_zh", "--epochs", "0.02", "--max-length", "64"]
    assert main("--model", model, *WORLD, *train, "--output", tmp_path) == 0
    told = capfd.readouterr()
    assert "\r" not in told.out + told.err and "train_runtime" not in told.out + told.err
    assert told.out.splitlines()[-1] == (
        f"Written 已寫入: {tmp_path}/results.json, items.jsonl, predictions.json, nbest.json, report.html, model"
    )
    assert not [line for line in told.err.splitlines() if not re.match(r"\d+/\d+ |step ", line)], told.err


def test_a_killed_run_goes_on_and_other_settings_are_refused(model, tmp_path, capsys, monkeypatch):
    assert main("--model", model, *WORLD, "--output", tmp_path / "whole") == 0
    made = []

    class Killed(runner.Run):
        def add(self, item):
            if len(made) == 7:
                raise KeyboardInterrupt
            made.append(item.id)
            super().add(item)

    monkeypatch.setattr(runner, "Run", Killed)
    assert main("--model", model, *WORLD, "--output", tmp_path / "killed") == 130
    monkeypatch.undo()
    assert main("--model", model, *WORLD, "--output", tmp_path / "killed") == 0
    found, whole = read(tmp_path / "killed"), read(tmp_path / "whole")
    assert found["resumed"] == 7 and found["scores"] == whole["scores"]
    assert read(tmp_path / "killed", "predictions.json") == read(tmp_path / "whole", "predictions.json")
    capsys.readouterr()
    assert main("--model", model, *WORLD, "--output", tmp_path / "killed", "--overlap", "8") == 2
    assert "other settings" in capsys.readouterr().err


def test_it_fine_tunes_first_keeps_the_model_and_takes_it_again(model, tmp_path, monkeypatch, capsys):
    train = squad_file(tmp_path / "train.json", ("狗在公園。", [("1", "狗在哪裡？", [("公園", 2)])]))
    argv = ["--model", model, *WORLD, "--train-data", train, "world:squad_zh", "--epochs", "0.1"]
    argv += ["--learning-rate", "1e-2", "--batch-size", "8"]
    assert main(*argv, "--output", tmp_path / "run") == 0
    told = read(tmp_path / "run")["settings"]["options"]["training"]
    assert told["train_data"] == [train, "world:squad_zh"] and len(told["data_hash"]) == 16
    assert main("--model", model, *WORLD, "--output", tmp_path / "before") == 0
    assert main("--model", tmp_path / "run" / "model", *WORLD, "--output", tmp_path / "after") == 0
    of_run, before, after = (read(tmp_path / name, "predictions.json") for name in ("run", "before", "after"))
    assert of_run == after != before
    for name in ("items.jsonl", "results.json"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.setattr(module, "finetune", None)  # calling it would fail
    assert main(*argv, "--output", tmp_path / "run") == 0
    assert read(tmp_path / "run", "predictions.json") == of_run


def test_lora_is_trained_saved_and_measured(model, tmp_path):
    argv = ["--train-data", "world:squad_zh", "--epochs", "0.1", "--learning-rate", "1e-2", "--lora", "2"]
    assert main("--model", model, *WORLD, *argv, "--output", tmp_path / "run") == 0
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
    assert main("--model", tmp_path / "run" / "model", *WORLD, "--output", tmp_path / "after") == 0
    assert read(tmp_path / "run", "predictions.json") == read(tmp_path / "after", "predictions.json")


def test_squad2_is_trained_answered_and_its_files_score_the_same(model, tmp_path, capsys):
    def questions(count, seed):
        rows = world_questions(2 * count, split="train")
        return [
            (one.context, [(f"{seed}-{at}", one.question, list(one.answers) if at % 2 else [])])
            for at, one in enumerate(rows)
        ]

    train = squad_file(tmp_path / "train.json", *questions(8, "train"))
    data = squad_file(tmp_path / "data.json", *questions(6, "test"))
    argv = ["--model", model, "--data", data, "--scorer", "squad2", "--max-length", "64"]
    argv += ["--train-data", train, "--learning-rate", "1e-2", "--batch-size", "8"]
    assert main(*argv, "--output", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "HasAns 有答案" in said and "NoAns 無答案" in said and "best F1" in said
    found, odds = read(tmp_path / "run"), read(tmp_path / "run", "null_odds.json")
    items = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [not item["answer"] for item in items] == [value > 0 for value in odds.values()]
    assert found["details"]["parts"] == {"HasAns": 6, "NoAns": 6} and found["details"]["human"] is None
    assert set(found["intervals"]) == {"em", "f1", "HasAns_em", "HasAns_f1", "NoAns_em", "NoAns_f1"}
    report = score_squad2(tmp_path / "data.json", tmp_path / "run" / "predictions.json", False,
                          tmp_path / "run" / "na_prob.json")  # fmt: skip
    official = {"em": "exact_match", "f1": "f1", "HasAns_em": "HasAns_exact", "NoAns_em": "NoAns_exact"}
    for name in ("em", "f1", "HasAns_em", "HasAns_f1", "NoAns_em", "NoAns_f1"):
        assert found["scores"][name] == pytest.approx(report[official.get(name, name)])
    best = found["details"]["best_threshold"]
    assert {name: report[name] for name in report if name.startswith("best_")} == pytest.approx(
        {name: value for name, value in best.items() if not name.endswith("_diff")}
    )
    assert "–" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    never = ["--null-score-diff-threshold", "-1000000000"]
    assert main(*argv, "--output", tmp_path / "run", *never) == 2  # other answers
    assert "null_score_diff_threshold 0.0, now -1000000000.0" in capsys.readouterr().err
    argv = ["--model", tmp_path / "run" / "model", *argv[2:8], *never]
    assert main(*argv, "--output", tmp_path / "never") == 0
    assert set(read(tmp_path / "never", "predictions.json").values()) == {""}
    assert read(tmp_path / "never")["scores"]["NoAns_f1"] == 100
    assert read(tmp_path / "never", "null_odds.json") == pytest.approx(odds, abs=1e-4)


def test_the_version_of_a_scorer_counts_its_changes():
    assert (version("drcd"), version("cmrc"), version("squad", "cmrc"), version("squad2")) == (1, 2, 2, 1)


def test_counts_of_what_was_mended_and_the_human_row_come_with_the_result(model, tmp_path):
    data = squad_file(
        tmp_path / "data.json",
        ("狗在公園。狗來了。", [
            ("1", "誰來了？", [("狗", 3), ("狗來了", 5)]),
            ("2", "狗在哪裡？", [("公園", 2), ("公園", 2)]),
            ("3", "貓在哪裡？", [("海邊", 2)]),
        ]),
    )  # fmt: skip
    argv = ["--model", model, "--data", data, "--scorer", "drcd", "--max-length", "32", "--max-query-length", "4"]
    assert main(*argv, "--on-bad-row", "drop", "--output", tmp_path / "run") == 0
    found = read(tmp_path / "run")
    told = found["details"]
    assert found["reportable"] and told["questions_realigned"] == ["1"] and told["questions_cut"] == ["2"]
    assert told["questions_dropped"] == {"answer not in the passage": ["3"]}
    assert told["references_a_question"] == 2 and told["human"] == {"em": 50.0, "f1": 75.0}  # 狗來了 | 狗: 1/2
    assert found["n"] == {"items": 2, "clusters": 1} and found["intervals"]["f1"] is None
    # what the scorer of files makes of it is the same
    answers = read_squad(tmp_path / "data.json")
    said, _ = read_predictions(tmp_path / "run" / "predictions.json", list(answers))
    scores = [scorers.drcd(said[name], answers[name]).f1 for name in ("1", "2")]
    assert found["scores"]["f1"] == pytest.approx(50 * sum(scores))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--data", "world:squad_fr"], "'squad_fr' is not a kind"),
        (["--data", "world:squad_zh", "--split", "dev"], "no split 'dev'"),
        (["--data", "world:squad_zh", "--max-length", "65"], "do not fit a model that reads 64"),
        (["--data", "world:squad_zh", "--max-length", "8"], "has no room"),
        (["--data", "world:squad_zh", "--step", "8", "--overlap", "8"], "give only one"),
        (["--data", "world:squad_zh", "--freeze", "encoder"], "give --train_dataset_name too"),
        (["--data", "world:squad_zh", "--max-length", "64", "--train-data", "world:squad_zh", "--freeze", "x"],
         "freeze is 'x'"),
        (["--data", "./nowhere.json"], "does not exist"),
        (["--data", "world:squad_zh", "--null-score-diff-threshold", "0"], "by --scorer drcd every question has one"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(argv, told, model, capsys):
    assert main("--model", model, "--scorer", "drcd", *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("rlhf-kit eval extractive: ") and told in said and "Traceback" not in said


def test_the_scorer_must_be_named(model, capsys):
    assert main("--model", model, "--data", "world:squad_zh") == 2
    assert "--scorer is missing" in capsys.readouterr().err


def test_spans_are_marked_where_they_stand_and_text_is_escaped():
    html = marked("a<b cd", [(0, 3), (0, 3)], (2, 5))
    assert html == (
        '<p class="passage"><mark class="gold">a&lt;</mark><mark class="gold said">b</mark>'
        '<mark class="said"> c</mark>d</p>'
    )
    assert marked("ab", [(0, 2)], None) == '<p class="passage"><mark class="gold">ab</mark></p>'


def test_items_hold_what_is_needed_to_look_at_them():
    nothing = Spans(*[np.zeros(0)] * 5)
    question = Question("q", "狗在公園。", "誰？", (("狗", 0), ("狗在", 0)), "g", "who")
    made = module.item(question, Prediction("q", "狗在公", 0, 0.5, 0.0, question.context, nothing), scorers.drcd)
    assert (made.id, made.cluster, made.group, made.answer) == ("q", "g", "who", "狗在公")
    assert made.scores == {"em": 0.0, "f1": pytest.approx(0.8)}  # against 狗在
    assert made.details["references"] == ["狗", "狗在"] and made.details["start"] == 0
