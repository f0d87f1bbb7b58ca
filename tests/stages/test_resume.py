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
def test_two_processes_go_on_to_the_same_end_and_one_or_three_do_not(
    name, base, demonstrations, ranked, ranks, tmp_path
):
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
    for count in (1, 3):
        statuses, said = ranks(name, [*argv, "--resume_from_checkpoint"], count)
        assert statuses == [2] * count and f"trained with 2 processes, and this run has {count}" in said, said
    statuses, said = ranks(name, [*argv, "--resume_from_checkpoint"])
    assert statuses == [0, 0] and f"Resuming from {first.name}" in said, said
    assert json.loads((out / "run.json").read_text())["resumed_from"] == first.name
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole) and untimed(out) == logged


def untimed(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "runtime", "per_second")
    return [{k: v for k, v in row.items() if not k.endswith(timed) and not k.startswith("seconds/")} for row in rows]
