"""A rollout on packed weights is the rollout without, and the update after it is on the weights themselves."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_kit.models import prepacked
from rlhf_kit.models.adapters import has_base, wrap
from rlhf_kit.models.prepacked import _Merged, _Packed
from rlhf_kit.ppo import loop

ONEDNN = pytest.mark.skipif(not prepacked._is_supported(), reason="PyTorch without oneDNN's bf16")


def trained(make_trainer, policy, **options) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and losses of a run from `policy`, which stays as it is."""
    model = type(policy)(policy.config)
    model.load_state_dict(policy.state_dict())
    torch.manual_seed(0)
    trainer = make_trainer(model=model, learning_rate=1e-2, **options)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return trainer.model.state_dict(), losses


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_float32_runs_are_the_same_bit_for_bit(make_trainer, policy, monkeypatch, lora):
    options = {"peft_config": LoraConfig(r=4)} if lora else {}
    weights, losses = trained(make_trainer, policy, **options)
    monkeypatch.setattr(prepacked, "_is_supported", lambda: False)
    others, plain = trained(make_trainer, policy, **options)
    assert losses == plain
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.fixture
def packs(monkeypatch) -> list:
    """All that were made, in order; each with the weights it packed, if any."""
    made, begin = [], _Packed.__init__

    def noted(self, module):
        made.append(self)
        begin(self, module)

    monkeypatch.setattr(_Packed, "__init__", noted)
    return made


@ONEDNN
def test_a_policy_is_packed_once_for_its_rollout_and_its_log_probs(make_trainer, packs):
    trainer = make_trainer(bf16=True)
    layers = [f"transformer.h.{i}.{name}" for i in range(2) for name in ("attn.c_attn", "attn.c_proj")]
    layers += [f"transformer.h.{i}.mlp.{name}" for i in range(2) for name in ("c_fc", "c_proj")]
    policy = trainer.model.policy
    linear = {policy.get_submodule(name) for name in (*layers, "lm_head")}
    read, packed = trainer.read_tokens, []

    def read_tokens(rollout):
        packed.extend(vars(layer).get("forward") in packs for layer in linear)
        return read(rollout)

    trainer.read_tokens = read_tokens
    trainer.collect(trainer.prompts[:4], torch.Generator().manual_seed(0))
    assert len(packed) == len(linear) and all(packed)
    assert {pack.module for pack in packs} == linear and len(packs) == len(linear)
    assert all(pack.weights is not None for pack in packs)
    assert not any("forward" in vars(module) for module in linear)


@ONEDNN
def test_a_lora_policy_samples_merged_and_is_read_as_it_is_trained(make_trainer, packs):
    """Its first log-probs are then those of its reference, the same weights without adapters: KL is 0."""
    trainer = make_trainer(bf16=True, peft_config=LoraConfig(r=4))
    experience, metrics = trainer.collect(trainer.prompts[:4], torch.Generator().manual_seed(0))
    assert metrics["kl"] == 0.0
    used = [pack for pack in packs if pack.weights is not None]
    merged = [pack for pack in used if isinstance(pack, _Merged)]
    bases = {pack.module.get_base_layer() for pack in merged}
    assert len(merged) == 8 and bases <= {pack.module for pack in used}
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0.0, 0.1)
    experience, _ = trainer.collect(trainer.prompts[:4], torch.Generator().manual_seed(0))
    unpacked = trainer.read_tokens(experience.rollout).logprobs
    assert torch.allclose(experience.logprobs, unpacked, rtol=0, atol=1e-5)


@ONEDNN
def test_the_reference_of_an_evaluation_is_sampled_on_packed_weights(make_trainer, packs):
    trainer = make_trainer(bf16=True)
    trainer.model.eval()
    trainer.sample(trainer.prompts[:2], torch.Generator().manual_seed(0), reference=True)
    assert packs and all(pack.weights is not None for pack in packs)
    assert {pack.module for pack in packs} <= {*trainer.ref_model.modules()}


@pytest.mark.parametrize("keep", [True, False])
def test_the_float32_base_stays_where_it_may_be_merged(make_trainer, policy, keep):
    """Where it does not, the numbers of an update are the same."""
    found = []
    for keep_base in (True, keep):
        options = {"model": copy.deepcopy(policy), "peft_config": LoraConfig(r=4), "keep_base": keep_base}
        trainer = make_trainer(bf16=True, total_episodes=8, **options)
        trainer.train()
        found.append({name: p for name, p in trainer.model.named_parameters() if p.requires_grad})
    base = trainer.model.policy.base_model.model.transformer.h[0].attn.c_attn.base_layer.weight
    assert base.dtype == (torch.bfloat16 if keep is False else torch.float32)
    assert all(torch.equal(found[0][name], weight) for name, weight in found[1].items())


@pytest.mark.parametrize("keep_base", [True, False])
def test_what_is_no_base_of_an_adapter_stays_float32(make_trainer, policy, keep_base):
    """A frozen layer of a model that is trained in full is saved with it."""
    policy.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    trainer = make_trainer(bf16=True, keep_base=keep_base)
    assert trainer.model.policy.transformer.h[0].mlp.c_fc.weight.dtype == torch.float32


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_memory_of_rollout_and_update_does_not_add_up_under_lora(make_trainer, monkeypatch, lora):
    """In full the update has the peak, and keeps what it frees."""
    asked = []
    monkeypatch.setattr(loop, "apart", lambda applies: asked.append(applies) or nullcontext())
    make_trainer(total_episodes=8, **({"peft_config": LoraConfig(r=4)} if lora else {})).train()
    assert asked == [lora]


def test_an_adapted_head_is_saved_with_what_is_under_it_and_so_kept():
    """peft writes `lm_head.base_layer.weight` beside the adapter."""
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    plain, headed = (
        wrap(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=targets))
        for targets in (["q_proj"], ["q_proj", "lm_head"])
    )
    assert has_base(plain) and not has_base(headed)
