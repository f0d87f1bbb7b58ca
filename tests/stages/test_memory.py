"""What a step frees is kept for the next: counted in page faults, not in seconds."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from rlhf_kit.training import Trainer
from rlhf_kit.training.memory import SET_BY_HAND, kept_memory

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SET_BY_HAND),
    reason="the allocator is not glibc's own",
)
SIZE, PAGE = 96 * 2**20, os.sysconf("SC_PAGE_SIZE")  # bytes


def faults():
    """Pages that are brought in while a block is taken and freed twenty times."""
    torch.empty(SIZE, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(SIZE, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_what_is_freed_is_kept_and_then_given_back():
    with kept_memory():
        assert faults() < 10 * SIZE / PAGE
        held = resident()
    assert resident() < held - SIZE / 2


def test_training_keeps_what_its_steps_free(policy, tmp_path):
    counted = []

    class Steps(Trainer):
        def training_step(self, *args, **options):
            counted.append(faults())
            return super().training_step(*args, **options)

    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
    Steps(policy, args, train_dataset=rows).train()
    assert counted[0] < 10 * SIZE / PAGE


def test_what_the_user_set_is_left_alone():
    found = subprocess.run(
        [sys.executable, "-c", "from rlhf_kit.training import memory; print(memory._glibc())"],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "None"
