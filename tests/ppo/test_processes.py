"""PPO in two processes, against numbers computed from the raw rollouts of both (`two_processes.py`, run once)."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.ppo import PPOConfig

SCRIPT = str(Path(__file__).with_name("two_processes.py"))


@pytest.fixture(scope="module")
def faults(tokenizer_folder, tmp_path_factory) -> list[dict[str, str]]:
    """What went wrong in each process, by the name of the check; "" where nothing did."""
    folder = tmp_path_factory.mktemp("processes")
    tokenizer = load_tokenizer(tokenizer_folder)
    shape = dict(n_layer=2, n_embd=32, n_head=2, n_positions=128, vocab_size=len(tokenizer))
    for seed, name in enumerate(("base", "reference")):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=tokenizer.eos_token_id, **shape))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(5)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    given = [str(folder / "base"), str(folder / "reference"), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [SCRIPT, *given])
        script = runpy.run_path(SCRIPT, run_name="alone")
        logs = script["build"](eval_rows=script["ROWS"].select(range(5))).evaluate()
    alone = {name: value for name, value in logs.items() if name.startswith("eval_")}
    (folder / "alone.json").write_text(json.dumps(alone))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", SCRIPT, *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_give_the_gradients_of_one(faults):
    assert [fault["check_gradients"] for fault in faults] == ["", ""]


def test_logged_numbers_are_means_over_all_processes(faults):
    assert [fault["check_logs"] for fault in faults] == ["", ""]


def test_an_evaluation_is_that_of_one_process(faults):
    assert [fault["check_evaluation"] for fault in faults] == ["", ""]


def test_max_kl_stops_all_processes(faults):
    assert [fault["check_max_kl"] for fault in faults] == ["", ""]


def test_two_processes_save_and_resume(faults):
    assert [fault["check_resume"] for fault in faults] == ["", ""]


def test_one_process_alone_writes_what_is_saved(make_trainer, monkeypatch, tmp_path):
    """transformers asks every process to save: two that write one file at once leave neither's."""
    trainer = make_trainer()
    with monkeypatch.context() as patch:
        patch.setattr(PPOConfig, "should_save", property(lambda self: False))  # as on another process
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()
