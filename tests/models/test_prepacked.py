"""Weights packed for a rollout compute what they compute unpacked, and leave nothing behind."""

import copy
import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from rlhf_kit.generation.sampling import sample
from rlhf_kit.models import prepacked as module_tested
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.precision import cast_frozen
from rlhf_kit.models.prepacked import prepacked

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 13]])
pytestmark = pytest.mark.skipif(not module_tested._is_supported(), reason="PyTorch without oneDNN's bf16")


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_config):
    """Random, with a tied LM head (GPT-2) and one of its own (Llama)."""
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    made = GPT2LMHeadModel(tiny_config) if request.param == "gpt2" else LlamaForCausalLM(small)
    return made.eval()


def with_lora(model: nn.Module, **options) -> nn.Module:
    """Adapters that have learned something."""
    return wrap(model, LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)).eval()


def in_bf16(model: nn.Module) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(IDS).logits


def packs_of(model: nn.Module) -> list:
    return [m.forward for m in model.modules() if isinstance(vars(m).get("forward"), module_tested._Packed)]


def used(model: nn.Module) -> int:
    return sum(pack.weights is not None for pack in packs_of(model))


def greedy(model: nn.Module) -> torch.Tensor:
    options = {"eos_ids": [0], "pad_id": 0, "max_completion_length": 12, "temperature": 0.0, "compact": False}
    with torch.autocast("cpu", torch.bfloat16):
        return sample(model, [[5, 6, 7], [8, 9]], **options).completion_ids


def error(logits: torch.Tensor, truth: torch.Tensor) -> float:
    return float((logits.float() - truth).norm() / truth.norm())


def test_autocast_gives_the_same_numbers_and_tokens(model):
    expected, tokens = in_bf16(model), greedy(model)
    with prepacked(model):
        # The same sums in the same order; another kernel of oneDNN's might add in another: 2**-8 is one bf16 step.
        assert torch.allclose(in_bf16(model), expected, rtol=2**-8, atol=2**-8)
        assert used(model) == sum(isinstance(m, nn.Linear | Conv1D) for m in model.modules())
        assert torch.equal(greedy(model), tokens)


def test_a_model_in_bf16_needs_no_autocast(model):
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        expected = model(IDS).logits
        with prepacked(model):
            assert torch.allclose(model(IDS).logits, expected, rtol=2**-8, atol=2**-8)
            assert used(model)


def test_float32_is_untouched_bit_for_bit(model):
    with torch.no_grad():
        expected = model(IDS).logits
        with prepacked(model):
            assert torch.equal(model(IDS).logits, expected)
            assert not used(model)
            in_bf16(model)
            with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
                assert torch.equal(model(IDS).logits, expected)  # a part that asks for float32 gets it


def test_forwards_with_gradients_are_the_layers_own(model):
    def gradients():
        with torch.autocast("cpu", torch.bfloat16):
            return torch.autograd.grad(model(IDS).logits.float().sum(), [*model.parameters()])

    expected = gradients()
    with prepacked(model):
        in_bf16(model)
        assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


def test_lora_is_one_product_as_near_to_float32_as_three(model):
    model = with_lora(model)
    with torch.no_grad():
        truth = model(IDS).logits
    apart = error(in_bf16(model), truth)
    with prepacked(model, merge=True):
        merged = error(in_bf16(model), truth)
        names = [name for name, m in model.named_modules() if vars(m).get("forward") in packs_of(model)]
        names = [name for name in names if model.get_submodule(name).forward.weights is not None]
        tokens = greedy(model)
    assert 0 < merged < 1.5 * apart < 0.03
    assert names and not any("lora_" in name or "base_layer" in name for name in names)
    # Greedy: in float32 each token is the likeliest, or less than the rounding behind it.
    ids = torch.cat([torch.tensor([5, 6, 7]), tokens[0]])
    with torch.no_grad():
        logits = model(ids[None]).logits[0, 2:-1]
    gaps = logits.max(-1).values - logits.gather(1, tokens[0][:, None]).squeeze(1)
    assert float(gaps.max()) < 3 * apart * float(logits.std())


def test_lora_kept_apart_computes_as_in_training(model):
    model = with_lora(model)
    expected = in_bf16(model)
    with prepacked(model):
        assert torch.allclose(in_bf16(model), expected, rtol=2**-8, atol=2**-8)


def test_an_update_too_small_for_bf16_is_added_before_rounding():
    """1 + 2**-8 * (1 + 2**-9) is nearer to 1 + 2**-7 than to 1. With A rounded to bf16 it would be in the middle, and
    go to the even one: 1."""
    layer = wrap_linear(torch.tensor([[1.0]]), a=torch.tensor([[1.0 + 2**-9]]), b=torch.tensor([[2**-8]]))
    with prepacked(layer, merge=True), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(1, 1)).item() == 1 + 2**-7


def test_an_update_is_added_to_the_float32_weight():
    """1 + 2**-9 and an update of 2**-8 are nearer to 1 + 2**-7 than to 1; the weight rounded first would be 1, and
    the sum with the update in the middle, which goes to the even one: 1."""
    layer = wrap_linear(torch.tensor([[1.0 + 2**-9]]), a=torch.tensor([[1.0]]), b=torch.tensor([[2**-8]]))
    with prepacked(layer, merge=True), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(1, 1)).item() == 1 + 2**-7


def wrap_linear(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> nn.Module:
    base = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    base[0].weight.data = weight.clone()
    layer = get_peft_model(base, LoraConfig(r=a.shape[0], lora_alpha=a.shape[0], target_modules=["0"])).eval()
    inner = layer.get_submodule("base_model.model.0")
    inner.lora_A["default"].weight.data, inner.lora_B["default"].weight.data = a, b
    return layer


def test_adapters_switched_off_are_the_base_alone(model):
    base = copy.deepcopy(model)
    model = with_lora(model)
    expected = in_bf16(base)
    with prepacked(model, merge=True):
        tuned = in_bf16(model)
        with model.disable_adapter():
            assert torch.allclose(in_bf16(model), expected, rtol=2**-8, atol=2**-8)
        assert torch.equal(in_bf16(model), tuned) and not torch.allclose(tuned, expected, rtol=0.05, atol=0.05)
    with model.disable_adapter(), prepacked(model, merge=True):
        assert torch.allclose(in_bf16(model), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_other_kinds_of_lora_are_not_merged(tiny_config, options):
    torch.manual_seed(0)
    model = with_lora(GPT2LMHeadModel(tiny_config), target_modules=["c_attn"], **options)
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name or ("lora_B" in name and name.endswith("bias")):
            parameter.data += 0.5
    expected = in_bf16(model)
    with prepacked(model, merge=True):
        assert torch.allclose(in_bf16(model), expected, rtol=2**-8, atol=2**-8)


def test_dropout_of_adapters_that_train_is_drawn(tiny_config):
    model = with_lora(GPT2LMHeadModel(tiny_config), lora_dropout=0.5)
    model.get_submodule("base_model.model.transformer.h.0.attn.c_attn").train()
    with prepacked(model, merge=True):
        assert not torch.equal(in_bf16(model), in_bf16(model))


def test_a_base_that_is_watched_is_called(tiny_config):
    model, calls = with_lora(GPT2LMHeadModel(tiny_config)), []
    layer = model.get_base_model().transformer.h[0].mlp.c_fc
    layer.get_base_layer().register_forward_hook(lambda *_: calls.append(1))
    with prepacked(model, merge=True):
        in_bf16(model)
    assert calls


def test_frozen_casts_are_packed_and_put_back(model):
    """The base under LoRA has a bf16 copy beside it (`cast_frozen`)."""
    model = with_lora(model)
    cast_frozen(model, torch.bfloat16, keep=True)
    expected = in_bf16(model)
    with prepacked(model):
        assert torch.allclose(in_bf16(model), expected, rtol=2**-8, atol=2**-8)
        assert any(pack.before is not None and pack.weights is not None for pack in packs_of(model))
        with prepacked(model, merge=True):  # within: what the outer one left
            in_bf16(model)
            assert any(isinstance(pack, module_tested._Merged) for pack in packs_of(model))
        assert not any(isinstance(pack, module_tested._Merged) for pack in packs_of(model)) and packs_of(model)
    assert not packs_of(model)
    assert any("forward" in vars(module) for module in model.modules())
    assert torch.equal(in_bf16(model), expected)


def test_nothing_stays_behind(model):
    model = with_lora(model)
    before = [{**vars(m)} for m in model.modules()]
    weights = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="interrupted"), prepacked(model, merge=True):
        in_bf16(model)
        kept = [weakref.ref(pack.weights[0]) for pack in packs_of(model) if pack.weights is not None]
        raise ValueError("interrupted")
    gc.collect()
    assert kept and not any(ref() is not None for ref in kept)
    assert all(vars(m).keys() == old.keys() for m, old in zip(model.modules(), before, strict=True))
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == weights[name][0] and torch.equal(parameter, weights[name][1])


def test_weights_that_changed_are_packed_anew(model):
    model = with_lora(model)
    with prepacked(model, merge=True):
        first = in_bf16(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.neg_()
    with prepacked(model, merge=True):
        second = in_bf16(model)
    assert not torch.equal(first, second)
    assert torch.allclose(second, in_bf16(model), rtol=0.05, atol=0.05)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_only_plain_layers_are_packed():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    watched = nn.Linear(8, 8)
    watched.forward = lambda x: nn.Linear.forward(watched, x) + 1
    model = nn.Sequential(Doubled(8, 8), normed, watched, nn.Linear(8, 8)).requires_grad_(False)
    x = torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with prepacked(model):
            assert torch.equal(model(x), expected)
            assert [pack.module for pack in packs_of(model)] == [model[3]]
    assert "forward" in vars(watched)


def test_a_machine_without_onednn_is_left_alone(model, monkeypatch):
    monkeypatch.setattr(module_tested, "_is_supported", lambda: False)
    with prepacked(model, merge=True):
        assert not packs_of(model)
