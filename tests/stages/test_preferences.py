"""DPO and KTO as stages: from a command line to a saved policy and its record."""

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.stages import dpo, kto
from tests.tiny_stages import QUIET, kill_after_step_2, run_command

STAGES = ("dpo", "kto")
MORE = ["--learning_rate", "1e-3", "--save_steps", "2", "--max_steps", "4"]


@pytest.fixture
def ranked(write_jsonl):
    rows = [{"prompt": f"say {at}", "completions": ["cat", "a dog", "mat"], "ranks": [1, 2, 3]} for at in range(8)]
    return write_jsonl("ranked.jsonl", rows)


@pytest.fixture
def argv(base, ranked):
    return [*("--model_name_or_path", str(base), "--dataset_name", str(ranked)), *QUIET]


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_trains_is_measured_and_goes_on_from_its_checkpoint(name, argv, ranked, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [*argv, "--eval_dataset_name", str(ranked), *MORE, "--output_dir", str(out)]
    assert run_command(name, argv) == 0
    assert f"The model is in 模型在 {out}" in capsys.readouterr().out
    run = record(out)
    assert run["stage"] == name and run["steps"] == 4 and run["metrics"]["eval_loss"] > 0
    assert run["metrics"]["train_rows"] == run["metrics"]["eval_rows"] == 8
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert policy.generation_config.eos_token_id == tokenizer.eos_token_id
    whole = load_file(out / "model.safetensors")
    kill_after_step_2(out)
    assert run_command(name, [*argv, "--resume_from_checkpoint"]) == 0
    assert record(out)["resumed_from"] == "checkpoint-2"
    again = load_file(out / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize("name", STAGES)
def test_adapters_and_a_reference_of_its_own(name, argv, base, tmp_path):
    adapter, merged, other = (tmp_path / folder for folder in ("adapter", "merged", "other"))
    lora = [*argv, "--use_peft", "--lora_r", "2", *MORE]
    assert run_command(name, [*lora, "--output_dir", str(adapter)]) == 0
    assert run_command(name, [*lora, "--merge_adapter", "--output_dir", str(merged)]) == 0
    assert not (adapter / "ref").exists() and not (merged / "adapter_config.json").exists()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    plain = load_policy(merged).state_dict()
    for key, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, plain[key], atol=1e-6, rtol=1e-5)
    assert run_command(name, [*argv, *MORE, "--ref_model_name_or_path", str(merged), "--output_dir", str(other)]) == 0
    first = json.loads((other / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["rewards/chosen"]) > 1e-4  # it starts away from that reference


def test_by_name_from_python_and_on_the_world(base, tmp_path):
    for name, module in (("dpo", dpo), ("kto", kto)):
        module.start(
            {"model_name_or_path": str(base), "dataset_name": "world", "output_dir": str(tmp_path / name),
             "beta": 0.2, "max_steps": 1, "max_train_samples": 40, "per_device_train_batch_size": 2,
             "disable_tqdm": True, "save_strategy": "no"}
        )  # fmt: skip
        assert record(tmp_path / name)["config"]["beta"] == 0.2


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("dpo", {"prompt": "x", "completion": "y", "label": True}, "data.jsonl has thumbs .*`rlhf-kit kto`"),
        ("kto", {"prompt": "x", "completion": "y", "label": True}, "All 1 answers are good"),
        ("dpo", {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 1]}, "nothing is left to learn from"),
        ("dpo", {"prompt": "the cat " * 200, "chosen": "a", "rejected": "b"}, "do not fit 2.*max_length 128"),
        ("kto", {"text": "x"}, "needed: `prompt`"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry"])
def test_data_that_teach_nothing_are_refused(name, row, message, dry, base, write_jsonl, tmp_path, capsys):
    data = write_jsonl("data.jsonl", [row])
    argv = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(tmp_path / "out")]
    assert run_command(name, [*argv, *dry]) == 2
    said = capsys.readouterr().err
    assert re.search(message, " ".join(said.split())) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    "more, message",
    [
        (["--no_disable_dropout"], "disable_dropout=False"),
        (["--use_peft", "--lora_dropout", "0.1"], "lora_dropout=0.1"),
        (["--config_overrides", "n_layer=1", "--tokenizer_name_or_path", "x"], "starts from a trained one"),
        (["--beta", "-1"], "beta.*-1"),
    ],
)
def test_options_are_refused_before_anything_is_read(name, more, message, argv, tmp_path, capsys):
    assert run_command(name, [*argv, *more, "--output_dir", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_dry_run_counts_and_writes_nothing(name, argv, ranked, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(tmp_path.rglob("*"))
    assert run_command(name, [*argv, "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    rows = {"dpo": 8, "kto": 16}[name]  # all of a list, or one good answer and one bad
    assert f"Plan of {name}" in said and f"{rows} rows" in said and sorted(tmp_path.rglob("*")) == before
