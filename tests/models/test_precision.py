"""Frozen weights cast once give what autocast gives by casting them in every forward."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.precision import HeldCasts, cast_frozen

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def in_bf16(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(IDS).logits


@pytest.fixture(params=["gpt2", "llama"])
def frozen(request, tiny_config):
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = GPT2LMHeadModel(tiny_config) if request.param == "gpt2" else LlamaForCausalLM(small)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("keep", [True, False])
def test_the_numbers_are_those_of_autocast(frozen, keep):
    expected, before = in_bf16(frozen), copy.deepcopy(frozen.state_dict())
    cast_frozen(frozen, torch.bfloat16, keep)
    assert torch.equal(in_bf16(frozen), expected)
    kinds = {name: weight.dtype for name, weight in frozen.state_dict().items()}
    assert all(kinds[name] == torch.float32 for name in kinds if "wte" in name or "embed" in name or "ln_" in name)
    linear = next(name for name in kinds if name.endswith(("c_attn.weight", "q_proj.weight")))
    assert (kinds[linear] == torch.float32) == keep
    if keep:
        assert all(torch.equal(weight, before[name]) for name, weight in frozen.state_dict().items())


def test_adapters_are_trained_in_float32_over_a_cast_base(frozen):
    model = wrap(frozen, LoraConfig(r=4, init_lora_weights=False))
    expected = in_bf16(model)
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    cast_frozen(model, torch.bfloat16, keep=True)
    assert torch.equal(in_bf16(model), expected)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS).logits.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    # Merging works on the float32 weights, which are all there.
    after = copy.deepcopy(model).merge_and_unload().state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in merged.items())


def test_what_is_trained_is_left_alone(policy):
    before = {name: p.data_ptr() for name, p in policy.named_parameters()}
    cast_frozen(policy, torch.bfloat16, keep=False)
    assert before == {name: p.data_ptr() for name, p in policy.named_parameters()}


def test_casts_are_held_until_released():
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    casts = HeldCasts()

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x).detach()

    casts.hold()
    first = forward()
    layer.weight.data.add_(1.0)
    assert torch.equal(forward(), first)  # held: the old weights
    casts.release()
    assert not torch.equal(forward(), first)
    layer.weight.data.sub_(1.0)
    assert torch.allclose(forward(), first, atol=0.02)  # released: nothing is kept
    casts.release()  # once more changes nothing
    assert not torch.is_autocast_enabled("cpu")
