"""PPO under FSDP2 in two processes beside DDP (`two_shards.py`, run once), which `pieces_cpu.py` makes real there."""

import json
from pathlib import Path

import pytest
import torch
from ranks import launched
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.models.checkpoints import load_tokenizer

SCRIPT = str(Path(__file__).with_name("two_shards.py"))


@pytest.fixture(scope="module")
def faults(tokenizer_folder, tmp_path_factory) -> list[dict[str, str]]:
    """What went wrong in each process, by the kind of run; "" where nothing did."""
    folder = tmp_path_factory.mktemp("shards")
    tokenizer = load_tokenizer(tokenizer_folder)
    torch.manual_seed(0)
    shape = dict(n_layer=2, n_embd=32, n_head=2, n_positions=128, vocab_size=len(tokenizer))
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=tokenizer.eos_token_id, **shape))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    launched(SCRIPT, folder / "base", folder)
    return [json.loads((folder / f"shards-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", ["full", "lora-separate"])
def test_ppo_in_pieces_is_ppo_whole(faults, kind):
    """Every logged number, the evaluation, weights and moments; a run goes on from either's checkpoint."""
    assert [fault[kind] for fault in faults] == ["", ""]
