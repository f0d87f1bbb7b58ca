"""`rlhf-kit ppo` and what a user may ask of it: done, or one message and exit status 2."""

import json
from functools import partial

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.cli import main
from rlhf_kit.errors import UserError
from rlhf_kit.ppo import PPOConfig
from rlhf_kit.stages import ppo, reward, sft
from tests.tiny_stages import run_command

FUNCTIONS = """
def one(completions, **_): return 1.0
def none(completions, **_): [1.0] * len(completions)
def strs(completions, **_): return ["good"] * len(completions)
def nested(completions, **_): return [[1.0]] * len(completions)
def gen(completions, **_): return (1.0 for _ in completions)
def dicts(completions, **_): return {"scores": [1.0] * len(completions)}
def lengths(completions, **_): return [float(len(str(text))) for text in completions]
"""
TOLD = {
    "one": "'one' returned the number 1.0",
    "none": "'none' returned nothing",
    "strs": "'strs' returned the text 'good' for the completion",
    "nested": "'nested' returned a list for the completion",
    "gen": "'gen' returned a generator",
    "dicts": "'dicts' returned a dict",
}


@pytest.fixture
def command(base, ranked, tmp_path, monkeypatch):
    (tmp_path / "functions_of_a_beginner.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def build(*options, reward_funcs="functions_of_a_beginner:lengths"):
        argv = ["--model_name_or_path", base, "--reward_funcs", reward_funcs, "--dataset_name", ranked]
        argv += [
            "--rollout_batch_size",
            4,
            "--mini_batch_size",
            2,
            "--num_ppo_epochs",
            1,
            "--max_completion_length",
            4,
        ]
        argv += ["--total_episodes", 8, "--per_device_train_batch_size", 2, "--disable_tqdm", "--report_to", "none"]
        return [str(item) for item in [*argv, "--output_dir", tmp_path / "out", *options]]

    return build


@pytest.mark.parametrize("name", TOLD)
def test_what_a_reward_function_returned_is_told(command, capsys, tmp_path, name):
    assert run_command(ppo, command(reward_funcs=f"functions_of_a_beginner:{name}")) == 2
    told = capsys.readouterr().err
    assert f"{TOLD[name]}" in told and "give one number per completion, a list of 4 (None: no opinion)" in told
    assert not (tmp_path / "out" / "run.json").exists()


def test_transformers_generate_writes_what_the_pool_writes(command, tmp_path):
    """From the command line, in float32: the completions of each rollout, and what is learnt from them."""
    runs = {}
    for backend in ("pool", "transformers"):
        out = tmp_path / backend
        options = ("--generation_backend", backend, "--log_completions", "--bf16", "false", "--output_dir", out)
        assert run_command(ppo, command(*options, "--max_completion_length", 12)) == 0
        files = sorted((out / "completions").glob("*.parquet"))
        texts = [pyarrow.parquet.read_table(file).column("completion").to_pylist() for file in files]
        runs[backend] = texts, load_file(out / "model.safetensors")
    (texts, weights), (others, other_weights) = runs.values()
    assert texts == others and len(texts) == 2 and len({*sum(texts, [])}) > 4
    torch.testing.assert_close(weights, other_weights, atol=1e-5, rtol=1e-4)


def test_a_backend_that_is_none_is_refused(command, capsys):
    assert run_command(ppo, command("--generation_backend", "transformer")) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "needs one of pool, transformers" in err and "transformers" in err
    with pytest.raises(UserError, match="generation_backend='sglang' must be one of pool, transformers, vllm"):
        PPOConfig("out", generation_backend="sglang", use_cpu=True)


def test_run_json_says_why_a_run_stopped(command, tmp_path):
    assert (
        run_command(
            ppo, command("--total_episodes", "40", "--max_kl", "1e-6", "--learning_rate", "0.1", "--save_steps", "100")
        )
        == 0
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert 0 < record["steps"] < 20 and "passed max_kl=1e-06" in record["stopped"]
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == [f"checkpoint-{record['steps']}"]
    assert (tmp_path / "out" / "model.safetensors").exists()
    whole = command("--overwrite_output_dir")
    assert run_command(ppo, whole) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["stopped"] is None


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--value_model", "reward"]], ids=str)
def test_a_language_model_is_no_reward(command, base, tmp_path, capsys, more):
    """Told before the data are read: there are none of that name."""
    argv = command("--dataset_name", "no/such.jsonl", *more, reward_funcs=str(base))
    assert run_command(ppo, argv) == 2
    told = capsys.readouterr().err
    assert "is not a reward model: it is a GPT2LMHeadModel, without a head that gives scores" in told
    assert not (tmp_path / "out").exists()


def test_a_language_model_scores_nothing_elsewhere_and_still_starts_a_reward_model(base, ranked, tmp_path, capsys):
    told = "is not a reward model: it is a GPT2LMHeadModel"
    options = ["--model", str(base), "--data", str(ranked)]
    assert main(["eval", "reward", *options, "--output", str(tmp_path / "e")]) == 2
    assert told in capsys.readouterr().err
    assert run_command("score", options) == 2
    assert told in capsys.readouterr().err
    argv = ["--model_name_or_path", str(base), "--dataset_name", str(ranked), "--output_dir", str(tmp_path / "out")]
    assert run_command(reward, [*argv, "--max_steps", "1", "--disable_tqdm", "--report_to", "none"]) == 0


def test_numbers_out_of_range_are_told_together(command, capsys, tmp_path):
    assert run_command(ppo, command("--gamma", "2", "--cliprange", "-1", "--generation_batch_size", "-1")) == 2
    told = capsys.readouterr().err
    for fault in (
        "gamma=2.0 must lie between 0 and 1",
        "cliprange=-1.0 must be above 0",
        "generation_batch_size=-1 must",
    ):
        assert fault in told
    assert not (tmp_path / "out").exists()


def test_other_stages_numbers_too(base, demonstrations, ranked, capsys, tmp_path):
    options = ["--output_dir", str(tmp_path / "out"), "--model_name_or_path", str(base), "--learning_rate", "-1"]
    for stage, data in ((sft, demonstrations), (reward, ranked)):
        assert run_command(stage, [*options, "--dataset_name", str(data), "--per_device_train_batch_size", "0"]) == 2
        told = capsys.readouterr().err
        assert "learning_rate=-1.0 must not be negative" in told
        assert "per_device_train_batch_size=0 must be at least 1" in told


def test_texts_beside_ppo_longer_than_the_context_are_refused(command, texts, capsys):
    options = ["--ptx_dataset_name", str(texts), "--ptx_coef", "1", "--ptx_max_length", "512"]
    for more in ([], ["--dry-run"]):
        assert run_command(ppo, command(*options, *more)) == 2
        assert "ptx_max_length=512 is more than the policy's context of 128 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_every_stage_checkpoints_activations(command, base, texts, demonstrations, ranked, tmp_path, stage, name):
    """To the weights that it comes to without."""
    data = {"pretrain": texts, "sft": demonstrations, "reward": ranked}
    weights = []
    for number, more in enumerate(([], [f"--{name}", "true"])):
        out = str(tmp_path / f"{stage}-{number}")
        if stage == "ppo":
            argv = [item if item != str(tmp_path / "out") else out for item in command()]
        else:
            argv = ["--model_name_or_path", str(base), "--dataset_name", str(data[stage]), "--output_dir", out]
            argv += ["--max_steps", "2", "--disable_tqdm", "--report_to", "none"]
            argv += ["--block_size", "16"] if stage == "pretrain" else []
        main = partial(run_command, stage)
        assert main([*argv, "--bf16", "false", *more]) == 0
        weights.append(load_file(f"{out}/model.safetensors"))
    for key, weight in weights[0].items():
        torch.testing.assert_close(weights[1][key], weight, atol=1e-5, rtol=1e-4)
