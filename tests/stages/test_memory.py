"""What a step frees is kept for the next: counted in page faults, not in seconds."""

import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from rlhf_kit.data import store
from rlhf_kit.memory import SET_BY_HAND, apart, kept_memory
from rlhf_kit.training import Trainer

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


def what_is_freed_is_kept_and_then_given_back():
    objects = [bytes(1000) for _ in range(100_000)]
    last = bytes(1000)  # below what glibc would give back of itself
    del objects
    held = resident()
    with kept_memory():
        assert resident() < held - 50e6
    del last
    if faults() < 15 * SIZE / PAGE:
        return  # pages are larger here than they say: nothing can be counted
    with kept_memory():
        assert faults() < 10 * SIZE / PAGE
        held = resident()
    assert resident() < held - SIZE / 2


def what_is_free_goes_before_and_after_other_work():
    with kept_memory():
        faults()
        held = resident()
        with apart():
            assert resident() < held - SIZE / 2
            faults()
            held = resident()
        assert resident() < held - SIZE / 2
        faults()
        held = resident()
        with apart(False):
            assert resident() > held - SIZE / 2


def what_making_stored_rows_has_freed_goes():
    kept = []

    def make(path):
        objects = [bytes(1000) for _ in range(100_000)]
        kept.append(bytes(1000))  # below what glibc would give back of itself
        del objects
        kept.append(resident())
        store.write(path, [{"number": 1}], datasets.Features({"number": datasets.Value("int64")}))
        return {}

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "folder", lambda: Path(folder))
        store.stored("key", "rows", make)
        assert resident() < kept[1] - 50e6


def training_keeps_what_its_steps_free():
    counted = []

    class Steps(Trainer):
        def training_step(self, *args, **options):
            counted.append(faults())
            return super().training_step(*args, **options)

    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2
    policy = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
        Steps(policy, args, train_dataset=rows).train()
    assert counted[0] < 10 * SIZE / PAGE


RULES = (
    what_is_freed_is_kept_and_then_given_back, what_is_free_goes_before_and_after_other_work,
    what_making_stored_rows_has_freed_goes, training_keeps_what_its_steps_free,
)  # fmt: skip


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES])
def test_in_the_first_thread_of_a_process(rule):
    """Others have heaps of their own, which no large block fits."""
    program = f"from tests.stages import test_memory; test_memory.{rule}()"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_what_the_user_set_is_left_alone():
    found = subprocess.run(
        [sys.executable, "-c", "from rlhf_kit import memory; print(memory._glibc())"],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "None"
