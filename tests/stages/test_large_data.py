"""Stages on data that lie in files: bit for bit what they train in memory, resumed in the middle of an epoch too."""

import json
import os
import re
import subprocess
import sys

import datasets
import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.data import rows
from tests.tiny_stages import PPO, QUIET, run_command

# Every source is too large; the process kills itself after the first checkpoint.
KILLED = """
import os, sys
from rlhf_kit.cli import main
from rlhf_kit.data import rows
from rlhf_kit.stages.output import MetricsFile


def kill_after_two(self, args, state, control, **kwargs):
    if state.global_step > 2:
        os.kill(os.getpid(), 9)


rows.IN_MEMORY = 0
MetricsFile.on_log = kill_after_two
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlhf_kit"


def argv_of(stage, base, files):
    data = files["texts" if stage == "pretrain" else "demonstrations" if stage == "sft" else "ranked"]
    argv = ["--model_name_or_path", base, "--dataset_name", data, *QUIET, "--use_cpu", "--save_steps", "2"]
    if stage == "ppo":
        return [*argv, *PPO, "--total_episodes", "16", "--ptx_dataset_name", files["texts"], "--ptx_coef", "1"]
    argv += ["--max_steps", "4", "--dataloader_num_workers", "2"]
    return [*argv, "--block_size", "32"] if stage == "pretrain" else argv


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_a_stage_trains_the_same_from_files_and_goes_on_in_an_epoch(
    stage, base, texts, demonstrations, ranked, tmp_path, cache, monkeypatch
):
    argv = argv_of(stage, base, {"texts": texts, "demonstrations": demonstrations, "ranked": ranked})
    small, large, killed = (tmp_path / name for name in ("small", "large", "killed"))
    assert run_command(stage, [*argv, "--output_dir", small]) == 0 and not cache.exists()
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    assert run_command(stage, [*argv, "--output_dir", large]) == 0
    stored = {path.parent for path in cache.glob("*/about.json")}
    assert len(stored) == (4 if stage == "ppo" else 2)
    command = [sys.executable, "-c", KILLED, stage, *map(str, argv), "--output_dir", str(killed)]
    ended = subprocess.run(command, capture_output=True, env={**os.environ})
    assert ended.returncode == -9, ended.stderr.decode()
    assert run_command(stage, [*argv, "--output_dir", killed, "--resume_from_checkpoint"]) == 0
    assert json.loads((killed / "run.json").read_text())["resumed_from"]
    assert {path.parent for path in cache.glob("*/about.json")} == stored
    weights = [load_file(folder / "model.safetensors") for folder in (small, large, killed)]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]) and torch.equal(weight, weights[2][name]), name


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_share_of_padding_in_packed_rows_is_said_and_kept(
    stage, base, texts, demonstrations, tmp_path, caplog, capsys
):
    """Of the rows' room by hand: tokens of all rows over rows times tokens a row."""
    files, out = {"texts": texts, "demonstrations": demonstrations}, tmp_path / "out"
    argv = [*argv_of(stage, base, files), "--max_steps", "1"]
    argv += ["--packing", "--max_length", "64"] if stage == "sft" else []
    assert run_command(stage, [*argv, "--dry_run", "--output_dir", out]) == 0
    tokens = int(re.search(r"tokens an epoch\W+about (\d+)", capsys.readouterr().out)[1])
    planned = [record.getMessage() for record in caplog.records if "is padding" in record.getMessage()]
    caplog.clear()
    assert run_command(stage, [*argv, "--output_dir", out]) == 0
    lines = [record.getMessage() for record in caplog.records if "is padding" in record.getMessage()]
    assert len(lines) == 1 and planned == lines
    waste = json.loads((out / "run.json").read_text())["metrics"]["packing_waste"]
    count, length = map(int, re.search(r"packed into (\d+) rows of (\d+) tokens", lines[0]).groups())
    assert waste == pytest.approx(1 - tokens / (count * length)) and f"{waste:.1%} of that is padding" in lines[0]
