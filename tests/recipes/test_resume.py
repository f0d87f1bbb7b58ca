"""SIGKILL in the middle of a stage, then the same command with --resume_from_checkpoint: the same end."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.recipes import ppo, reward, sft

# The process kills itself when the third log is due, that is after the first checkpoint.
KILLED = """
import importlib, os, signal, sys
from rlhf_kit.recipes.output import MetricsFile

logged = []


def kill_at_three(self, args, state, control, logs=None, **kwargs):
    logged.append(state.global_step)
    if len(logged) == 3:
        os.kill(os.getpid(), signal.SIGKILL)


MetricsFile.on_log = kill_at_three
sys.exit(importlib.import_module("rlhf_kit.recipes." + sys.argv[1]).main(sys.argv[2:]))
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
    assert stage.main([*argv, "--output_dir", str(whole)]) == 0
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, name, *argv, "--output_dir", str(killed)], capture_output=True
    )
    assert ended.returncode == -9, ended.stderr.decode()
    assert not (killed / "run.json").exists() and not (killed / "config.json").exists()
    assert stage.main([*argv, "--output_dir", str(killed), "--resume_from_checkpoint"]) == 0
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (whole, killed))
    assert second["resumed_from"] and second["steps"] == first["steps"]
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-5, msg=key)
