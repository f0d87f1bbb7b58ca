"""What a PPO run computes, by the models that it has: beside torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_kit.stages.work import counting, models_of, work_of


def wide(tokenizer, kind=GPT2LMHeadModel, **options):
    """Wide enough for attention to be little beside its products."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        n_layer=2, n_embd=128, n_head=2, n_positions=128, vocab_size=len(tokenizer), bos_token_id=end,
        eos_token_id=end, pad_token_id=end, **options,
    )  # fmt: skip
    return kind(config).eval()


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_a_ppo_run_counts_what_torch_counts(make_trainer, tokenizer, value_model):
    judge = wide(tokenizer, GPT2ForSequenceClassification, num_labels=1)
    trainer = make_trainer(judge, model=wide(tokenizer), value_model=value_model)
    torchs = FlopCounterMode(display=False)
    with torchs, counting(trainer):
        trainer.train()
    work = work_of(trainer)
    expected = {"model", "reference", "reward_model"} | ({"value_model"} if value_model == "separate" else set())
    assert {*work["models"]} == expected
    assert work["flops"] == pytest.approx(torchs.get_total_flops(), rel=0.04)
    assert work["models"]["reference"]["backward"] == work["models"]["reward_model"]["backward"] == 0
    assert work["models"]["model"]["backward"] > work["models"]["model"]["forward"] * 0.8


def test_functions_are_no_models(make_trainer):
    assert {*models_of(make_trainer())} == {"model", "reference"}
