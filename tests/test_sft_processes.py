"""SFT in two processes: a step is that of one."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from models.test_packed import model_of
from ranks import launched
from trl import SFTConfig

from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.models.packed import is_packed
from rlhf_kit.sft import SFTTrainer

SIZES = [(9, 4), (3, 1), (17, 12), (6, 5)]  # tokens, how many of the first have no label


def main(folder, tokenizer, processes):
    """One optimizer step on four texts; the weights are written by the first."""
    rows = [
        {"input_ids": [*range(3, 3 + n)], "labels": [-100] * skip + [*range(3 + skip, 3 + n)]} for n, skip in SIZES
    ]
    args = SFTConfig(
        str(folder), learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=1,
        per_device_train_batch_size=4 // processes, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(model_of("gpt2", vocab_size=300), args, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    assert is_packed(trainer.model)
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), Path(folder, f"{processes}.pt"))


def test_two_processes_take_the_step_of_one(tokenizer_folder, tmp_path):
    """Though they have different numbers of labels."""
    main(tmp_path, load_tokenizer(tokenizer_folder), 1)
    launched(__file__, tmp_path, tokenizer_folder)
    one, two = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
    assert not torch.equal(one["lm_head.weight"], model_of("gpt2", vocab_size=300).lm_head.weight)


if __name__ == "__main__":
    main(sys.argv[1], load_tokenizer(sys.argv[2]), 2)
    torch.distributed.destroy_process_group()  # left to the interpreter's end, its threads now and then abort it
