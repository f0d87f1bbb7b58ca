"""SIGKILL in the middle of a stage, then the same command with --resume_from_checkpoint: the same end."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.stages import ppo, reward, sft
from tests.tiny_stages import PPO, QUIET, run_command

# The process kills itself when the third log is due, that is after the first checkpoint.
KILLED = """
import importlib, os, signal, sys
from rlhf_kit.cli import main
from rlhf_kit.stages.output import MetricsFile

logged = []


def kill_at_three(self, args, state, control, logs=None, **kwargs):
    logged.append(state.global_step)
    if len(logged) == 3:
        os.kill(os.getpid(), signal.SIGKILL)


MetricsFile.on_log = kill_at_three
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("stage", [sft, reward, ppo], ids=lambda module: module.__name__.split(".")[-1])
def test_a_killed_stage_goes_on_to_the_same_end(stage, base, demonstrations, ranked, tmp_path):
    name = stage.__name__.split(".")[-1]
    common = ["--model_name_or_path", base, "--per_device_train_batch_size", 2, "--seed", 3, "--disable_tqdm"]
    options = {
        "sft": ["--dataset_name", demonstrations, "--max_steps", 4, "--save_steps", 2, "--logging_steps", 1],
        "reward": [
            *["--dataset_name", ranked, "--max_steps", 4, "--save_steps", 2, "--logging_steps", 1],
            *["--gradient_accumulation_steps", 1],
        ],
        "ppo": [
            *["--dataset_name", ranked, "--reward_funcs", "rlhf_kit.world:truth_reward", "tests.rewards:brief"],
            *["--rollout_batch_size", 4, "--mini_batch_size", 2, "--num_ppo_epochs", 1, "--total_episodes", 16],
            *["--max_completion_length", 6, "--save_steps", 2, "--kl_target", 1.0],
        ],
    }[name]
    argv = [str(item) for item in [*common, *options]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command(stage, [*argv, "--output_dir", str(whole)]) == 0
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, name, *argv, "--output_dir", str(killed)], capture_output=True
    )
    assert ended.returncode == -9, ended.stderr.decode()
    assert not (killed / "run.json").exists() and not (killed / "config.json").exists()
    assert run_command(stage, [*argv, "--output_dir", str(killed), "--resume_from_checkpoint"]) == 0
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (whole, killed))
    assert second["resumed_from"] and second["steps"] == first["steps"]
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_two_processes_go_on_to_the_same_end(name, base, demonstrations, ranked, ranks, tmp_path):
    """Each process has its own random state and counts; what one of them lost is a damaged checkpoint."""
    out = tmp_path / "out"
    argv = ["--model_name_or_path", base, "--output_dir", out, *QUIET, "--use_cpu", "--save_steps", 2]
    if name == "ppo":
        argv += ["--dataset_name", ranked, *PPO, "--kl_target", 1, "--total_episodes", 16]
    else:
        argv += ["--dataset_name", demonstrations, "--max_steps", 6, "--train_sampling_strategy", "group_by_length"]
    statuses, said = ranks(name, argv)
    assert statuses == [0, 0], said
    whole, logged = load_file(out / "model.safetensors"), untimed(out)
    first, *later = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    for path in (*later[1:], out / "model.safetensors", out / "run.json"):  # killed before they were written
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (later[0] / "rng_state_1.pth").write_bytes(b"")
    statuses, said = ranks(name, [*argv, "--resume_from_checkpoint"])
    assert statuses == [0, 0] and f"Resuming from {first.name}" in said, said
    assert json.loads((out / "run.json").read_text())["resumed_from"] == first.name
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole) and untimed(out) == logged


def with_rows(processes):
    """Four rows a step."""
    return ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2 // processes]


@pytest.fixture
def stages(base, texts, demonstrations, ranked):
    config = json.loads((base / "config.json").read_text())
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)  # drawn by each process for itself
    (base / "config.json").write_text(json.dumps(config | dropout))
    common = ["--model_name_or_path", base, "--use_cpu", "--disable_tqdm", "--save_steps", 2, "--logging_steps", 4]
    common += ["--save_total_limit", 9, "--learning_rate", 1e-2]
    steps = [*common, "--max_steps", 8]
    return {
        "pretrain": [*steps, "--dataset_name", texts, "--block_size", 16],
        "sft": [*steps, "--dataset_name", demonstrations],
        "reward": [*steps, "--dataset_name", ranked],
        "ppo": [*common, "--dataset_name", ranked, *PPO, "--mini_batch_size", 4, "--total_episodes", 32],
    }


@pytest.mark.parametrize("before, now", [(2, 1), (1, 2)])
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_another_number_of_processes_goes_on_with_the_rows_that_are_left(stage, before, now, stages, ranks, tmp_path):
    """The checkpoint is inside a logging interval, and of SFT inside a pass over the data."""
    out = tmp_path / "out"

    def command(processes):
        more = [] if stage == "ppo" else with_rows(processes)
        return [*stages[stage], *more, "--output_dir", out]

    statuses, said = ranks(stage, command(before), before)
    assert statuses == [0] * before, said
    whole, logged = load_file(out / "model.safetensors"), untimed(out)
    for name in ("checkpoint-4", "checkpoint-6", "checkpoint-8"):
        shutil.rmtree(out / name)
    for name in ("model.safetensors", "run.json"):
        (out / name).unlink()
    statuses, said = ranks(stage, [*command(now), "--resume_from_checkpoint"], now)
    assert statuses == [0] * now and f"From step 2 on: processes {now} (before: {before})" in said, said
    changes = json.loads((out / "run.json").read_text())["changes"]
    assert changes[0]["from_step"] == 2 and changes[0]["options"]["processes"] == [before, now]
    again = load_file(out / "model.safetensors")
    for name, weight in whole.items():
        torch.testing.assert_close(again[name], weight, atol=2e-5, rtol=1e-4, msg=name)
    for row, other in zip(logged, untimed(out), strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-4)


def test_other_processes_that_would_read_other_rows_are_refused(stages, ranks, tmp_path):
    out = tmp_path / "out"
    given = [*stages["sft"], "--output_dir", out, "--per_device_train_batch_size", 2]
    two = [*given, *with_rows(2), "--train_sampling_strategy", "group_by_length", "--dataloader_drop_last"]
    assert ranks("sft", two)[0] == [0, 0]
    more = [*two[len(given) + 4 :], "--resume_from_checkpoint"]
    for count, accumulation, told in [
        (
            1,
            1,
            "its steps have 4 rows, and here they have 2 (keep the 4 with --gradient_accumulation_steps 2), and --",
        ),
        (3, 1, "its steps have 4 rows, and here they have 6 (keep the 4), and --"),
        (1, 2, "--train_sampling_strategy group_by_length, --dataloader_drop_last True would give a step other rows"),
    ]:
        statuses, said = ranks("sft", [*given, "--gradient_accumulation_steps", accumulation, *more], count)
        assert statuses == [2] * count, said
        assert f"it was trained with 2 processes, and this run has {count}: " in said and told in said, said


def untimed(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "runtime", "per_second")
    return [{k: v for k, v in row.items() if not k.endswith(timed) and not k.startswith("seconds/")} for row in rows]
