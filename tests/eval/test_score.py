"""`rlhf-kit score`: the rows of any file out again, with the scores that the model gives."""

import json
import subprocess
import sys

import pytest
import torch
import toy

from rlhf_kit.models import heads
from rlhf_kit.models.ensemble import Ensemble
from tests.tiny_stages import run_command

RANKED = [
    {"prompt": "one", "completions": ["good", "bad"], "ranks": [1, 1], "id": 7},  # ranks that no training would take
    {"prompt": [{"role": "user", "content": "two"}], "completions": ["only"], "note": "數"},
]
PAIRS = [
    {"prompt": "one", "chosen": "good", "rejected": "bad"},
    {"prompt": "two", "chosen": "same", "rejected": "same", "margin": 1.5},
]
DIALOGUES = [
    {
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "bad"}],
    }
]
PLAIN = [{"prompt": "one", "completion": "good"}, {"prompt": "two", "completion": "bad", "label": True}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three saved reward models."""
    made = tmp_path_factory.mktemp("models")
    return [toy.save_model(made / str(seed), toy.reward_model(seed)) for seed in range(3)]


def run(tmp_path, rows, *arguments):
    """The rows that the command writes."""
    data, output = toy.write_lines(tmp_path / "in.jsonl", rows), tmp_path / "made" / "out.jsonl"
    assert run_command("score", ["--data", data, "--output", str(output), *arguments]) == 0
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def expected(prompts, completions, seed=0):
    return heads.score_texts(toy.reward_model(seed), toy.byte_tokenizer(), prompts, completions).tolist()


def close(given, wanted):
    return given == pytest.approx(wanted, abs=1e-5)


def test_lists_get_a_score_an_answer_and_keep_what_they_had(folders, tmp_path):
    rows = run(tmp_path, RANKED, "--model", folders[0], "--batch-size", "1")
    assert [{name: row[name] for name in row if name != "scores"} for row in rows] == RANKED
    assert list(rows[0]) == ["prompt", "completions", "ranks", "id", "scores"]
    assert close(rows[0]["scores"], expected(["one", "one"], ["good", "bad"]))
    assert close(rows[1]["scores"], expected(["two"], ["only"]))
    assert "數" in (tmp_path / "made/out.jsonl").read_text("utf-8")


def test_dialogues_are_scored_by_their_last_turn(folders, tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "good"}]
    rows = run(tmp_path, [{"messages": turns}], "--model", folders[0])
    assert rows[0]["messages"] == turns and close([rows[0]["score"]], expected(["Hi"], ["good"]))


def test_pairs_get_chosen_and_rejected(folders, tmp_path):
    rows = run(tmp_path, PAIRS, "--model", folders[0])
    assert close(rows[0]["scores"], expected(["one", "one"], ["good", "bad"]))
    assert rows[1]["scores"][0] == rows[1]["scores"][1] and rows[1]["margin"] == 1.5
    rows = run(tmp_path, DIALOGUES, "--model", folders[0])
    assert close(rows[0]["scores"], expected(["Hi", "Hi"], ["good", "bad"]))


def test_single_completions_get_one_score_which_replaces_an_old_one(folders, tmp_path):
    rows = run(tmp_path, [{"score": "old", **PLAIN[0]}, PLAIN[1]], "--model", folders[0])
    assert close([row["score"] for row in rows], expected(["one", "two"], ["good", "bad"]))
    assert list(rows[0]) == ["prompt", "completion", "score"] and rows[1]["label"] is True


def test_a_system_text_and_a_history_stand_before_what_is_scored(folders, tmp_path):
    opening = {"system": "Be kind.", "history": [["Hi", "Hello"]]}
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "one")]
    asked = [{"role": role, "content": text} for role, text in turns]
    rows = run(tmp_path, [{"prompt": "one", "completion": "good", **opening}], "--model", folders[0])
    assert close(rows[0]["score"], expected([asked], ["good"])[0]) and rows[0]["system"] == "Be kind."
    rows = run(tmp_path, [{**DIALOGUES[0], "system": "Be kind."}], "--model", folders[0])
    assert close(rows[0]["scores"], expected([[asked[0], asked[1]]] * 2, ["good", "bad"]))


def test_rows_of_other_projects_are_scored_and_kept_as_they_are(folders, tmp_path):
    row = {"instruction": "one", "input": "two", "chosen": "good", "rejected": "bad"}
    rows = run(tmp_path, [row], "--model", folders[0])
    assert close(rows[0].pop("scores"), expected(["one\n\ntwo"] * 2, ["good", "bad"])) and rows == [row]


def test_a_column_that_belongs_into_the_prompt_is_refused(folders, tmp_path, capsys):
    data = toy.write_lines(tmp_path / "in.jsonl", [{**PLAIN[0], "context": "Anna came."}])
    assert run_command("score", ["--data", data, "--model", folders[0]]) == 2
    assert "`context` is not read" in capsys.readouterr().err


def test_standard_output_is_the_same_lines(folders, tmp_path, capsys):
    data = toy.write_lines(tmp_path / "in.jsonl", PLAIN)
    assert run_command("score", ["--model", folders[0], "--data", data]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == run(
        tmp_path, PLAIN, "--model", folders[0]
    )


def test_a_folder_has_splits(folders, tmp_path):
    toy.write_lines(tmp_path / "train.jsonl", PLAIN)
    toy.write_lines(tmp_path / "test.jsonl", PLAIN[:1])
    output = tmp_path / "out.jsonl"
    for split, count in (([], 2), (["--split", "test"], 1)):
        assert (
            run_command("score", ["--model", folders[0], "--data", str(tmp_path), "--output", str(output), *split])
            == 0
        )
        assert len(output.read_text("utf-8").splitlines()) == count


@pytest.mark.parametrize("reduce", ["mean", "min", "mean-std"])
def test_several_models_are_an_ensemble(folders, tmp_path, reduce):
    more = ["--std-coef", "0.5"] if reduce == "mean-std" else []
    rows = run(tmp_path, RANKED, "--model", *folders, "--ensemble", reduce, *more)
    models = [toy.reward_model(seed) for seed in range(3)]
    ensemble = Ensemble(models, [toy.byte_tokenizer()] * 3, reduce, 0.5)
    wanted = ensemble(["one", "one", "two"], ["good", "bad", "only"]).tolist()
    assert close(rows[0]["scores"] + rows[1]["scores"], wanted)
    each = torch.tensor([expected(["one", "one"], ["good", "bad"], seed) for seed in range(3)])
    by_hand = {"mean": each.mean(0), "min": each.amin(0), "mean-std": each.mean(0) - 0.5 * each.std(0, correction=0)}
    assert close(rows[0]["scores"], by_hand[reduce].tolist())


def test_the_mean_is_what_several_models_give_unasked(folders, tmp_path):
    first = run(tmp_path, PLAIN, "--model", *folders)
    assert first == run(tmp_path, PLAIN, "--model", *folders, "--ensemble", "mean")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "answer": "b"}], "Rename `answer` to"),
        ([PLAIN[0], {"prompt": "a", "completion": " "}], "line 2: `completion` is empty"),
        ([PLAIN[0], {"prompt": "a", "completion": 3}], "line 2: `completion` is the number 3"),
        ([RANKED[0], {"prompt": "a", "completions": []}], "line 2: `completions` is an empty list"),
        ([RANKED[0], {"prompt": "a", "completions": "b"}], "line 2: `completions` is the text 'b'; give a list"),
        ([{"completions": ["b"]}], "needed"),
        ([PLAIN[0], {"prompt": "a", "completion": "x" * 64}], "line 2: a completion has 65 tokens"),
        ([PLAIN[0], "text"], "line 2: "),
        ([], "no rows"),
        ([{"messages": [{"role": "user", "content": "Hi"}]}], "no assistant turn"),
        ([{"messages": [{"role": "user", "content": "Hi"}] * 2}], "ends with a turn of the user"),
        ([{"chosen": "a", "rejected": "b"}], "needed"),
    ],
)
def test_faults_of_the_data_are_told_and_nothing_is_written(folders, tmp_path, capsys, rows, message):
    data, output = toy.write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert run_command("score", ["--model", folders[0], "--data", data, "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rlhf-kit score: ") and message in said and "Traceback" not in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}", "--ensemble", "min"], "combines several models"),
        (["{0}", "{0}"], "names a model twice"),
        (["{0}", "{1}", "--std-coef", "2"], "applies to --ensemble mean-std only"),
        (["{0}/none"], "no folder"),
        (["{0}", "--output", "{0}"], "is a folder; give a file"),
    ],
)
def test_mistakes_are_one_sentence(folders, tmp_path, capsys, arguments, message):
    data = toy.write_lines(tmp_path / "in.jsonl", PLAIN)
    assert (
        run_command("score", ["--data", data, "--model", *(argument.format(*folders) for argument in arguments)]) == 2
    )
    said = capsys.readouterr().err
    assert said.startswith("rlhf-kit score: ") and message in said and said.count("\n") == 1


def test_a_model_that_reads_padding_is_refused(folders, tmp_path, capsys):
    data, folder = toy.write_lines(tmp_path / "in.jsonl", RANKED), toy.save_model(tmp_path / "m", toy.padding_reader())
    for models in ([folder], [folders[0], folder]):
        assert run_command("score", ["--data", data, "--model", *models, "--output", str(tmp_path / "out.jsonl")]) == 2
        assert "a score must not depend on padding" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_cut_prompt_is_told(folders, tmp_path, capsys):
    rows = run(tmp_path, [{"prompt": "p" * 100, "completion": "good"}], "--model", folders[0])
    assert "1 prompts do not fit the model" in capsys.readouterr().err
    assert close([rows[0]["score"]], expected(["p" * 100], ["good"]))


def test_a_reader_that_stops_early_is_no_error(folders, tmp_path):
    data = toy.write_lines(
        tmp_path / "in.jsonl", [{"prompt": "one", "completion": "x" * 40, "id": i} for i in range(2000)]
    )
    code = "import sys; from rlhf_kit.cli import main; sys.exit(main(['score', *sys.argv[1:]]))"
    command = [sys.executable, "-c", code, "--model", folders[0], "--data", data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["id"] == 0
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    assert "BrokenPipe" not in errors
