"""`work` of run.json: the FLOPs of a run, whole or resumed."""

import json

import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel
from trl import SFTConfig

from rlhf_kit.sft import SFTTrainer
from rlhf_kit.stages.work import counting, work_of
from tests.tiny_stages import QUIET, run_command


@pytest.fixture
def demonstrations():
    return [{"prompt": "say " + "cat " * (at % 3), "completion": "the dog " * (1 + at % 4)} for at in range(8)]


def test_an_sft_run_counts_what_torch_counts(tokenizer, demonstrations, tmp_path):
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    shape = {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 128, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end))
    args = SFTConfig(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(model, args, Dataset.from_list(demonstrations), processing_class=tokenizer)
    torchs = FlopCounterMode(display=False)
    with torchs, counting(trainer):
        trainer.train()
    assert work_of(trainer)["flops"] == pytest.approx(torchs.get_total_flops(), rel=0.03)


def work(folder) -> dict:
    return json.loads((folder / "run.json").read_text())["work"]


def test_a_resumed_run_tells_the_work_of_all_its_steps(policy, tokenizer, demonstrations, tmp_path):
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    own = ["--model", tmp_path / "base", "--data", rows, "--save_steps", "2", *QUIET]
    for name, steps in {"whole": ["4"], "parts": ["2", "4"]}.items():
        for count in steps:
            more = ["--resume_from_checkpoint"] if count != steps[0] else []
            argv = [
                *own,
                "--output_dir",
                tmp_path / name,
                "--max_steps",
                count,
                "--lr_scheduler_type",
                "constant",
                *more,
            ]
            assert run_command("sft", argv) == 0
    assert work(tmp_path / "whole") == work(tmp_path / "parts")
    count = work(tmp_path / "whole")["models"]["model"]
    assert count["tokens"] > 0 and count["backward"] > 1.5 * count["forward"]
