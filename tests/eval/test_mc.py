"""Multiple choice by likelihood: figures by hand, and from plain forwards; faulty rows are refused together."""

import json
import math

import pytest
import torch

from rlhf_kit.cli import main
from rlhf_kit.data.choices import faults_of
from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.mc import MC, MCArguments, scores_of
from rlhf_kit.models.checkpoints import load_tokenizer

ROW = {
    "question": "Does the dog sit?",
    "choices": ["the cat sat", "the dog", "and so did the mat"],
    "labels": [1, 0, 1],
}


@pytest.fixture
def model_folder(policy, tokenizer_folder, tmp_path):
    policy.save_pretrained(tmp_path / "tiny")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_scores_by_hand():
    """e^-1 and e^-3 are true, e^-2 is not; per character the second choice is the best."""
    truths = {"ab": True, "abcd": False, "a": True}
    scores = scores_of({"mc1": truths, "mc2": truths}, {"ab": -1.0, "abcd": -1.5, "a": -3.0})
    mass = [math.exp(value) for value in (-1.0, -1.5, -3.0)]
    assert scores["mc1"] == 1 and scores["acc_norm"] == 0
    assert scores["mc2"] == pytest.approx((mass[0] + mass[2]) / sum(mass))


def test_mass_of_sums_that_no_exponential_holds():
    truths = {"a": True, "b": False}
    assert scores_of({"mc1": truths, "mc2": truths}, {"a": -2000.0, "b": -2000.0})["mc2"] == pytest.approx(0.5)


def test_it_equals_plain_forwards(policy, tokenizer, model_folder, tmp_path):
    options = MCArguments(
        model_name_or_path=str(model_folder), dataset_name=written(tmp_path / "rows.jsonl", [ROW]),
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    (results,) = runner.run(MC, options).values()
    totals = []
    before = tokenizer("Q: Does the dog sit?\nA:")["input_ids"]
    for choice in ROW["choices"]:
        ids = before + tokenizer(f" {choice}")["input_ids"]
        with torch.no_grad():
            logprobs = policy(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        totals.append(sum(logprobs[at - 1, ids[at]].item() for at in range(len(before), len(ids))))
    mass = [math.exp(total) for total in totals]
    assert results.scores["mc2"] == pytest.approx(100 * (mass[0] + mass[2]) / sum(mass), rel=1e-4)
    assert results.scores["mc1"] == 100 * ROW["labels"][totals.index(max(totals))]
    hub = {"question": ROW["question"], "mc1_targets": {key: ROW[key] for key in ("choices", "labels")}}
    options.dataset_name, options.output_dir = written(tmp_path / "hub.jsonl", [hub]), None
    assert next(iter(runner.run(MC, options).values())).scores == results.scores
    (tmp_path / "prompt.txt").write_text("Q: Is the cat there?\nA: so did the mat\n")
    options.prompt_file = str(tmp_path / "prompt.txt")
    assert next(iter(runner.run(MC, options).values())).scores["mc2"] != results.scores["mc2"]


def test_faulty_rows_are_refused_together(model_folder, tmp_path):
    (model_folder / "model.safetensors").write_bytes(b"no weights")
    rows = [
        ROW,
        {**ROW, "question": " "},
        {**ROW, "labels": [1, 0]},
        {**ROW, "labels": [1, 1, 1]},
        {**ROW, "choices": "a"},
    ]
    data = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        runner.run(MC, MCArguments(model_name_or_path=str(model_folder), dataset_name=data))
    for words in (
        "line 2: `question` must be a string",
        "line 3: `labels` must be a list of 3",
        "line 4: `labels` must mark at least one choice as true (1)",
        "line 5: `choices`",
    ):
        assert words in str(error.value)
    assert list(faults_of({**ROW, "choices": ["a", "a", "b"]})) == ["a choice appears twice"]


def test_a_dry_run_loads_no_weights_and_writes_nothing(model_folder, tmp_path, capsys):
    (model_folder / "model.safetensors").write_bytes(b"no weights")
    data = written(tmp_path / "rows.jsonl", [ROW])
    argv = ["eval", "mc", "--model", str(model_folder), "--data", data, "--output", str(tmp_path / "out"), "--dry_run"]
    assert main(argv) == 0
    assert "1 questions of 1 rows" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
