"""DPO in two processes: a step is that of one, though their lists have different numbers of pairs and weights."""

import sys
from pathlib import Path

import torch
from models.test_packed import model_of
from ranks import launched

from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.methods.config import DPOConfig
from rlhf_kit.methods.dpo import DPOTrainer
from rlhf_kit.models.checkpoints import load_tokenizer

ANSWERS = ["cat", "a dog", "mat", "the cat sat"]
ROWS = [
    {"prompt": "say", "completions": ANSWERS[:2], "ranks": [1, 2], "weight": 2.0},
    {"prompt": "hello there", "completions": ANSWERS, "ranks": [1, 2, 3, 4], "weight": 1.0},
    {"prompt": "and", "completions": ANSWERS[1:], "ranks": [2, 1, 2], "weight": 1.0},
    {"prompt": "so did the dog", "completions": ANSWERS[2:], "ranks": [2, 1], "weight": 3.0},
]


def main(folder, tokenizer, processes):
    """One optimizer step on four lists, and their evaluation; the first process writes."""
    args = DPOConfig(
        str(folder), learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=1,
        per_device_train_batch_size=4 // processes, per_device_eval_batch_size=2, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    reference = model_of("gpt2", vocab_size=300)
    for parameter in reference.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    tokenizer = set_chat_template(load_tokenizer(tokenizer))
    trainer = DPOTrainer(
        model_of("gpt2", vocab_size=300), args, ROWS, ROWS, processing_class=tokenizer, ref_model=reference
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        torch.save((trainer.model.state_dict(), torch.tensor(loss)), Path(folder, f"{processes}.pt"))


def test_two_processes_take_the_step_of_one(tokenizer_folder, tmp_path):
    main(tmp_path, tokenizer_folder, 1)
    launched(__file__, tmp_path, tokenizer_folder)
    one, two = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    torch.testing.assert_close(two[0], one[0], atol=1e-6, rtol=1e-5)
    assert not torch.equal(one[0]["lm_head.weight"], model_of("gpt2", vocab_size=300).lm_head.weight)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], 2)
    torch.distributed.destroy_process_group()  # left to the interpreter's end, its threads now and then abort it
