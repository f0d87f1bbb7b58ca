"""FLOPs: the formula by hand, and what hooks count beside torch's own counter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.forward import packed_rows, read_rows
from rlhf_kit.models.heads import check_scores, sequence_scores
from rlhf_kit.models.packed import take_packed
from rlhf_kit.models.work import Products, attended, counted, multiplied

TINY = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 50, "n_positions": 32}
BODY, HEAD = 2 * 12 * 8 * 8, 50 * 8
WIDE = {
    "n_layer": 2,
    "n_embd": 128,
    "n_head": 2,
    "vocab_size": 200,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CLOSE = 0.03  # the masked half of attention, which torch counts


def test_what_a_token_is_multiplied_by_is_no_embedding_bias_or_norm():
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    assert multiplied(model) == (BODY, HEAD)
    assert multiplied(GPT2ForSequenceClassification(GPT2Config(**TINY, num_labels=1))) == (BODY + 8, 0)


def test_a_forward_and_its_backward_by_hand():
    products = Products(body=100, head=30, layers=2, hidden=8, trained=0.5)
    forward = 2 * 100 * 10 + 2 * 30 * 4 + 4 * 2 * 8 * 55
    assert products.forward(10, 55, 4) == forward
    assert products.backward(10, 55, 4) == forward + 0.5 * (2 * 100 * 10 + 2 * 30 * 4) + 4 * 2 * 8 * 55
    assert products.backward(10, 55, 4, recomputes=True) == products.backward(10, 55, 4) + forward


def test_tokens_attend_to_themselves_and_those_before():
    assert attended(2, 3, None) == 2 * (1 + 2 + 3)
    assert attended(2, 1, torch.ones(2, 7)) == 2 * 7  # on a cache of six
    assert attended(1, 2, torch.ones(1, 5)) == 4 + 5


def test_hooks_count_what_passes_and_go():
    model = GPT2LMHeadModel(GPT2Config(**TINY)).eval()
    counts = {}
    rows = torch.arange(15).view(3, 5)
    with counted({"policy": model}, counts):
        model(rows).logits.sum().backward()
        with torch.no_grad():
            model(rows)
    model(rows)
    forward = 2 * (BODY + HEAD) * 15 + 4 * 2 * 8 * 3 * 15
    assert counts == {"policy": {"tokens": 30, "forward": 2 * forward, "backward": 2 * forward}}


def test_under_lora_the_gradients_of_frozen_weights_are_no_work():
    policy = get_peft_model(
        GPT2LMHeadModel(GPT2Config(**TINY)), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    counts = {}
    with counted({"policy": policy}, counts):
        policy(torch.arange(10).view(2, 5)).logits.sum().backward()
    count, share = counts["policy"], 2 * 2 * (8 + 24) / sum(p.numel() for p in policy.parameters())
    body = BODY + 2 * 2 * (8 + 24)
    assert count["forward"] == 2 * (body + HEAD) * 10 + 4 * 2 * 8 * 2 * 15
    assert count["backward"] == pytest.approx(count["forward"] + share * 2 * (body + HEAD) * 10 + 4 * 2 * 8 * 2 * 15)


@pytest.fixture
def wide():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**WIDE)).eval()


def agrees(models, work) -> None:
    """What the hooks count is what torch counts."""
    counts, torchs = {}, FlopCounterMode(display=False)
    with torchs, counted(models, counts):
        work()
    total = sum(count["forward"] + count["backward"] for count in counts.values())
    assert total == pytest.approx(torchs.get_total_flops(), rel=CLOSE)


def test_sampling_with_a_cache_is_counted_as_torch_counts_it(wide):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]] * 3
    agrees(
        {"policy": wide}, lambda: sample(wide, prompts, eos_ids=[0], pad_id=0, max_completion_length=12, batch_size=4)
    )


def test_sampling_that_reads_rows_anew_is_counted_as_torch_counts_it(wide):
    options = {"eos_ids": [0], "pad_id": 0, "max_completion_length": 8, "compact": True}
    agrees({"policy": wide}, lambda: sample(wide, [[1, 2, 3], [4, 5]], **options))


def test_packed_rows_and_their_backward_are_counted_as_torch_counts_them(wide):
    assert take_packed(wide)
    rows, lengths = torch.arange(60).view(3, 20), torch.tensor([20, 16, 18])
    agrees({"policy": wide}, lambda: read_rows(wide, packed_rows(rows, lengths)).logits.sum().backward())


def test_a_reward_model_is_counted_as_torch_counts_it():
    model = GPT2ForSequenceClassification(GPT2Config(**WIDE, num_labels=1, pad_token_id=0)).eval()
    check_scores(model, [[1, 2, 3], [4, 5]])
    with torch.no_grad():
        agrees({"judge": model}, lambda: sequence_scores(model, torch.arange(40).view(2, 20), torch.tensor([20, 15])))
