"""RLOO and GRPO as stages: from a command line to a saved policy and its record."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification

from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.stages import grpo, rloo
from tests.tiny_stages import kill_after_step_2, run_command

STAGES = ("rloo", "grpo")
BRIEF = "--num_generations 2 --per_device_train_batch_size 4 --max_completion_length 4 --max_steps 4 --save_steps 2"
BRIEF = [*BRIEF.split(), "--learning_rate", "1e-3", "--logging_steps", "1", "--disable_tqdm"]


@pytest.fixture
def argv(base, ranked):
    return ["--model_name_or_path", str(base), "--dataset_name", str(ranked), *BRIEF]


@pytest.fixture
def judge(tmp_path, reward_model, tokenizer):
    reward_model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return str(tmp_path / "judge")


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_trains_is_measured_and_goes_on_from_its_checkpoint(name, argv, ranked, judge, tmp_path):
    out = tmp_path / "out"
    argv = [*argv, "--reward_funcs", judge, "tests.rewards:brief", "--eval_dataset_name", str(ranked)]
    argv += ["--max_eval_samples", "4", "--output_dir", str(out)]
    assert run_command(name, argv) == 0
    run = record(out)
    assert run["stage"] == name and run["steps"] == 4
    assert {"eval_reward", "eval_kl", "eval_rewards/judge/mean", "eval_rewards/brief/mean"} <= run["metrics"].keys()
    AutoModelForCausalLM.from_pretrained(out)
    whole = load_file(out / "model.safetensors")
    kill_after_step_2(out)
    assert run_command(name, [*argv, "--resume_from_checkpoint"]) == 0
    assert record(out)["resumed_from"] == "checkpoint-2"
    again = load_file(out / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize("name", STAGES)
def test_adapters_on_a_model_that_is_an_adapter_and_a_reference_of_its_own(name, argv, base, tmp_path):
    adapter, on_it, merged = (tmp_path / folder for folder in ("adapter", "on-it", "merged"))
    reward = ["--reward_funcs", "tests.rewards:brief"]
    assert run_command(name, [*argv, *reward, "--use_peft", "--lora_r", "2", "--output_dir", str(adapter)]) == 0
    assert (adapter / "adapter_config.json").is_file() and not (adapter / "ref").exists()
    again = [*argv, *reward, "--model_name_or_path", str(adapter)]
    assert run_command(name, [*again, "--output_dir", str(on_it)]) == 0
    first = json.loads((on_it / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["kl"]) < 1e-6  # it starts on the adapted model, which is its reference
    more = ["--use_peft", "--merge_adapter", "--ref_model_name_or_path", str(base), "--output_dir", str(merged)]
    assert run_command(name, [*again, *more]) == 0
    load_policy(merged)
    assert not (merged / "adapter_config.json").exists()
    assert abs(json.loads((merged / "metrics.jsonl").read_text().splitlines()[0])["kl"]) > 1e-6


def test_by_name_from_python_and_on_the_world(base, tmp_path):
    for name, module in (("rloo", rloo), ("grpo", grpo)):
        module.start(
            {"model_name_or_path": str(base), "dataset_name": "world", "output_dir": str(tmp_path / name),
             "reward_funcs": ["rlhf_kit.world:truth_reward"], "beta": 0.2, "num_generations": 2, "max_steps": 1,
             "per_device_train_batch_size": 2, "max_completion_length": 4, "max_prompt_length": 100,
             "disable_tqdm": True, "save_strategy": "no"}
        )  # fmt: skip
        assert record(tmp_path / name)["config"]["beta"] == 0.2


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    "more, message",
    [
        (["--top_k", "5"], "top_k=5: a token would be drawn from another distribution"),
        (["--use_peft", "--lora_dropout", "0.1"], "lora_dropout=0.1"),
        (["--beta", "0", "--ref_model_name_or_path", "x"], "with beta=0 nothing reads the reference"),
        (["--num_generations", "3"], "must be divisible by num_generations"),
        (["--reward_funcs", "tests.rewards:no_such"], "no_such"),
        (["--max_completion_length", "500"], "leaves no room for a prompt"),
        (["--eval_dataset_name", "x.jsonl", "--per_device_eval_batch_size", "3"], "a multiple of the 2 completions"),
        (["--ref_model_name_or_path", "./nowhere"], "nowhere"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry"])
def test_options_are_refused_before_anything_is_written(name, more, message, dry, argv, tmp_path, capsys):
    reward = ["--reward_funcs", "tests.rewards:brief"]
    assert run_command(name, [*argv, *reward, *more, *dry, "--output_dir", str(tmp_path / "out")]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split())) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_dry_run_counts_and_writes_nothing(name, argv, judge, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    argv = [*argv, "--reward_funcs", judge, "--output_dir", str(tmp_path / "out"), "--max_steps", "-1", "--dry_run"]
    before = sorted(tmp_path.rglob("*"))
    assert run_command(name, argv) == 0
    said = capsys.readouterr().out
    assert f"Plan of {name}" in said and "8 rows" in said and sorted(tmp_path.rglob("*")) == before
    assert re.search(r"optimizer steps\W+12\b", said)  # three passes over 8 prompts, 2 prompts a step


@pytest.mark.parametrize("name", STAGES)
def test_a_run_makes_the_steps_that_the_plan_counts(name, argv, tmp_path):
    more = ["--reward_funcs", "tests.rewards:brief", "--max_steps", "-1", "--num_train_epochs", "1", "--output_dir"]
    more += [str(tmp_path / "out"), "--num_iterations", "2", "--gradient_accumulation_steps", "2"]
    more += ["--per_device_train_batch_size", "2", "--save_strategy", "no"]
    assert run_command(name, [*argv, *more]) == 0
    assert record(tmp_path / "out")["steps"] == 8  # 4 generations of 2 prompts, each used for 2 steps


@pytest.mark.parametrize("name", STAGES)
def test_a_dry_run_looks_at_what_the_rewards_read(name, argv, tiny_config, tokenizer, tmp_path, capsys):
    """A completion that the reward model's context does not hold."""
    tiny_config.n_positions, tiny_config.num_labels, tiny_config.pad_token_id = 3, 1, tokenizer.pad_token_id
    GPT2ForSequenceClassification(tiny_config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    argv = [*argv, "--reward_funcs", str(tmp_path / "short"), "--output_dir", str(tmp_path / "out"), "--dry_run"]
    assert run_command(name, argv) == 2 and "Its end is what is judged" in " ".join(capsys.readouterr().err.split())
