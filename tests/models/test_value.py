"""The policy and its value function: any causal LM, four kinds of value model, nothing left behind by a forward."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import (
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import output_embeddings
from rlhf_kit.models.heads import sequence_scores, set_calibration
from rlhf_kit.models.value import PolicyAndValue, adapters_off, build_policy_and_value

COMPLETION = 3
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)


def gpt2(policy):
    return copy.deepcopy(policy)


def llama(policy):
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, initializer_range=0.2)).eval()


def neox(policy):
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, initializer_range=0.2)).eval()


ARCHITECTURES = [gpt2, llama, neox]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Prompts of 4 and 2 tokens, completions of 3."""
    prompts, completions = torch.tensor([[11, 12, 13, 14], [0, 0, 15, 16]]), torch.tensor([[21, 22, 23], [24, 25, 26]])
    sizes = torch.tensor([COMPLETION, COMPLETION])
    return Rollout(prompts, torch.tensor([4, 2]), completions, sizes, torch.tensor([False, True])).model_inputs()


def nonzero(module: PolicyAndValue) -> PolicyAndValue:
    module.value_head.weight.data.normal_()
    module.value_head.bias.data.fill_(0.3)
    return module


def hooks(module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def gradients(module, batch) -> dict[str, torch.Tensor]:
    module.zero_grad()
    output = module(**batch, with_entropy=True)
    (output["logprobs"].sum() + output["values"].square().sum() + output["entropy"].sum()).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_any_causal_model_gives_its_plain_forwards_numbers(make, policy, batch):
    module = nonzero(build_policy_and_value(make(policy), "shared", None))
    output = module(**batch, temperature=0.7, with_entropy=True)
    assert output["logprobs"].shape == output["entropy"].shape == (2, COMPLETION)
    assert output["values"].shape == (2, COMPLETION + 1)
    for row, size in ((0, 7), (1, 5)):  # each alone, without padding
        plain = module.policy(batch["input_ids"][row : row + 1, :size], output_hidden_states=True)
        logprobs = (plain.logits[0, -COMPLETION - 1 : -1] / 0.7).log_softmax(-1)
        chosen = logprobs.gather(-1, batch["completion_ids"][row][:, None])[:, 0]
        torch.testing.assert_close(output["logprobs"][row], chosen, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output["entropy"][row], -(logprobs.exp() * logprobs).sum(-1), atol=1e-5, rtol=1e-5)
        hidden = plain.hidden_states[-1][0, -COMPLETION - 1 :]  # after the final norm, as the LM head reads it
        values = hidden @ module.value_head.weight[0] + module.value_head.bias
        torch.testing.assert_close(output["values"][row], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_values_are_zero_at_first(value_model, policy, batch):
    module = build_policy_and_value(policy, value_model, None)
    assert not module(**batch)["values"].any()
    assert module.value_head.weight.requires_grad and module.value_head.bias.requires_grad


def test_a_shared_trunk_adds_a_head_and_nothing_else(policy):
    module = build_policy_and_value(policy, "shared", None)
    assert module.policy is policy and module.value_trunk is None and module.config is policy.config
    added = {name for name in module.state_dict() if not name.startswith("policy.")}
    assert added == {"value_head.weight", "value_head.bias"}
    assert {name.removeprefix("policy.") for name in module.state_dict()} - added == set(policy.state_dict())


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_a_separate_trunk_starts_as_the_policys_and_is_its_own(make, policy, batch):
    model = make(policy)
    shared = nonzero(build_policy_and_value(model, "shared", None))
    module = build_policy_and_value(model, "separate", None)
    module.value_head.load_state_dict(shared.value_head.state_dict())
    torch.testing.assert_close(module(**batch)["values"], shared(**batch)["values"], atol=1e-5, rtol=1e-5)
    kinds = {name.split(".")[0] for name in module.state_dict()}
    assert kinds == {"policy", "value_trunk", "value_head"}
    assert not any("lm_head" in name or "embed_out" in name for name in module.value_trunk.state_dict())
    output = module(**batch)
    output["values"].sum().backward()
    assert all(p.grad is None for p in module.policy.parameters())
    assert all(p.grad is not None for p in module.value_trunk.parameters())


@pytest.mark.parametrize("given", ["reward", "model"])
def test_a_reward_models_calibrated_score_is_the_first_value(given, policy, reward_model, batch):
    reward_model.score.weight.data.normal_()
    set_calibration(reward_model.config, 2.0, -0.5)
    args = ("reward", reward_model) if given == "reward" else (reward_model, None)
    module = build_policy_and_value(policy, *args)
    values = module(**batch)["values"][:, -1]
    rows = torch.tensor([[11, 12, 13, 14, 21, 22, 23], [15, 16, 24, 25, 26, 0, 0]])
    scores = 2.0 * sequence_scores(reward_model, rows, torch.tensor([7, 5])) - 0.5
    torch.testing.assert_close(values, scores, atol=1e-5, rtol=1e-5)
    module.value_head.weight.data.zero_()  # a copy: the judge stays as it is
    next(module.value_trunk.parameters()).data.zero_()
    assert reward_model.score.weight.any() and next(reward_model.transformer.parameters()).any()


def test_a_reward_model_still_in_adapters_is_read_with_them(policy, reward_model, batch):
    model = wrap(reward_model, LoraConfig(r=2, init_lora_weights=False)).eval()
    model.base_model.model.score.modules_to_save["default"].weight.data.normal_()
    module = build_policy_and_value(policy, "reward", model)
    scores = sequence_scores(model, batch["input_ids"][:1], torch.tensor([7]))
    torch.testing.assert_close(module(**batch)["values"][:1, -1], scores, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name, _ in module.value_trunk.named_parameters())


def test_a_frozen_reward_model_gives_a_trunk_that_trains(policy, reward_model):
    module = build_policy_and_value(policy, "reward", reward_model.requires_grad_(False))
    assert all(p.requires_grad for p in module.value_trunk.parameters())
    assert all(p.requires_grad for p in module.value_head.parameters())
    assert not any(p.requires_grad for p in reward_model.parameters())


def test_a_given_policy_lends_its_trunk_and_a_zero_head(policy, tiny_config, batch):
    other = GPT2LMHeadModel(tiny_config).eval()
    module = build_policy_and_value(policy, other, None)
    assert torch.equal(module.value_trunk.wte.weight, other.transformer.wte.weight)
    assert not module(**batch)["values"].any()


@pytest.mark.parametrize("value_model", ["separate", "reward"])
def test_under_lora_a_trunk_of_its_own_trains_adapters_only(value_model, policy, reward_model, batch):
    lora = LoraConfig(r=2, modules_to_save=["lm_head"])
    adapted = wrap(policy, LoraConfig(r=2))
    module = build_policy_and_value(adapted, value_model, reward_model, lora)
    moving = {name for name, p in module.value_trunk.named_parameters() if p.requires_grad}
    assert moving and all("lora_" in name for name in moving)
    assert len(moving) == 2 * 8
    assert lora.task_type is None and lora.modules_to_save == ["lm_head"]  # the user's record is not ours to change
    grads = gradients(nonzero(module), batch)
    assert {name.split(".")[0] for name in grads} == {"policy", "value_trunk", "value_head"}
    assert all("lora_" in name or name.startswith("value_head") for name in grads)


def test_a_separate_trunk_under_lora_starts_from_the_policy_as_it_is(policy, batch):
    """With what its adapter has learnt: it may come from SFT."""
    ids = batch["input_ids"][:1]
    plain = policy.transformer(ids).last_hidden_state.detach()
    adapted = wrap(policy, LoraConfig(r=2, init_lora_weights=False)).eval()
    expected = policy.transformer(ids).last_hidden_state.detach()
    assert (expected - plain).abs().max() > 1e-3
    for lora in (None, LoraConfig(r=3)):
        trunk = build_policy_and_value(adapted, "separate", None, lora).value_trunk
        ranks = {len(p) for name, p in trunk.named_parameters() if "lora_A" in name}
        assert ranks == (set() if lora is None else {3})
        torch.testing.assert_close(trunk(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_a_forward_leaves_no_hook_behind(make, lora, policy, batch):
    model = make(policy)
    module = build_policy_and_value(wrap(model, LoraConfig(r=2)) if lora else model, "shared", None)
    before = hooks(module)
    for _ in range(3):
        module(**batch)
    with pytest.raises(IndexError):
        module(**{**batch, "input_ids": batch["input_ids"] + 10**6})
    assert hooks(module) == before
    assert not output_embeddings(module.policy)._forward_pre_hooks


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, init_lora_weights=False)])
@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_gradient_checkpointing_changes_no_gradient(value_model, lora, use_reentrant, policy, batch):
    model = policy if lora is None else wrap(policy, lora)
    module = nonzero(build_policy_and_value(model, value_model, None, lora)).train()
    disable_dropout(module)
    plain = gradients(module, batch)
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    trunks = [module.policy, module.value_trunk] if value_model == "separate" else [module.policy]
    assert all(any(getattr(m, "gradient_checkpointing", False) for m in trunk.modules()) for trunk in trunks)
    saved = gradients(module, batch)
    assert saved.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_the_reference_is_the_policy_with_adapters_off(policy, batch):
    expected = build_policy_and_value(policy, "shared", None)(**batch)["logprobs"].detach()
    adapted = wrap(policy, LoraConfig(r=2, init_lora_weights=False)).eval()
    module = build_policy_and_value(adapted, "shared", None)
    assert (module(**batch)["logprobs"] - expected).abs().max() > 1e-3
    with adapters_off(module.policy):
        torch.testing.assert_close(module(**batch)["logprobs"], expected)


def test_values_and_logprobs_are_float32_under_autocast(policy, batch):
    module = nonzero(build_policy_and_value(policy, "shared", None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(**batch, with_entropy=True)
    assert {tensor.dtype for tensor in output.values()} == {torch.float32}
    assert not torch.equal(output["values"], output["values"].bfloat16().float())


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_the_value_head_is_as_wide_as_what_reaches_the_lm_head(value_model, batch):
    """OPT-350m's embeddings are half as wide as its layers, which `hidden_size` tells of."""
    sizes = dict(hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    policy = OPTForCausalLM(OPTConfig(**sizes, vocab_size=60, do_layer_norm_before=False, pad_token_id=0)).eval()
    module = nonzero(build_policy_and_value(policy, value_model, None))
    trunk = module.value_trunk or policy.model
    alone = trunk(batch["input_ids"][:1]).last_hidden_state[0, -COMPLETION - 1 :]
    assert alone.shape[-1] == 16
    values = alone @ module.value_head.weight[0] + module.value_head.bias
    torch.testing.assert_close(module(**batch)["values"][0], values, atol=1e-5, rtol=1e-5)
