"""What a run of each method computes: beside torch's own counter, which is told of what TRL's head adds in place."""

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.stages.work import counting, work_of
from tests.methods import test_dpo, test_kto, test_online


def wide(tokenizer):
    """Wide enough for attention to be little beside its products."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    shape = {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 128, "vocab_size": len(tokenizer)}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end)).eval()


def added_in_place(total, left, right, *others, **options):
    """Shapes of x += left @ right."""
    return 2 * left[0] * left[1] * right[1]


ONLINE = [partial(test_online.make, kind) for kind in ("rloo", "grpo")]


@pytest.mark.parametrize("make", [test_dpo.make, test_kto.make, *ONLINE], ids=["dpo", "kto", "rloo", "grpo"])
def test_a_run_counts_what_torch_counts(make, tokenizer, tmp_path):
    trainer = make(wide(tokenizer), tokenizer, tmp_path)
    torchs = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_in_place})
    with torchs, counting(trainer):
        trainer.train()
    work = work_of(trainer)
    assert {*work["models"]} == {"model", "reference"}
    assert work["flops"] == pytest.approx(torchs.get_total_flops(), rel=0.04)
