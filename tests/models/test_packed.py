"""Rows read as one long row: every architecture's numbers and gradients are those of padded rows."""

import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_kit.generation.reading import packs
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.packed import PREFIX, SHORT, Packing, _drawn, _is_short, packed, short_attention, take_padded
from rlhf_kit.models.value import build_policy_and_value

SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SHAPE |= {"intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2, "initializer_range": 0.2}
SHAPE |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
PACKED = {
    "gpt2": GPT2,
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"layer_types": ["full_attention"] * 2},
    "qwen3": {"layer_types": ["full_attention"] * 2},
    "gemma": {},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "phi": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "init_std": 0.2},
    "gpt_neox": {},
    "olmo2": {},
    "cohere": {},
    "stablelm": {},
    "biogpt": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
PADDED = {"bloom": {"n_head": 4, "n_layer": 2}, "falcon": {"num_kv_heads": 4}, "openai-gpt": GPT2}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16]]


def model_of(name: str, **options):
    torch.manual_seed(0)
    shape = SHAPE | {**PACKED, **PADDED}[name] | options
    if name == "falcon":  # whose size of a head follows from the others
        del shape["head_dim"]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape)).eval()


def rollout_of(rows: int = 5) -> Rollout:
    """Prompts of 1 to 9 tokens, completions of 1 to 12, some at the limit."""
    generator = torch.Generator().manual_seed(1)
    prompt_lengths = torch.tensor([9, 3, 1, 6, 9])[:rows]
    completion_lengths = torch.tensor([2, 12, 7, 1, 12])[:rows]
    prompts = torch.randint(3, 60, (rows, 9), generator=generator)
    completions = torch.randint(3, 60, (rows, 12), generator=generator)
    ended = completion_lengths < 12
    return Rollout(prompts, prompt_lengths, completions, completion_lengths, ended)


def outputs(module, rollout: Rollout, pack: bool) -> tuple[dict, dict]:
    """Log-probs, values and entropies of all rows, and the gradients of a loss of them."""
    rollout.pack = pack
    module.zero_grad()
    output = module(**rollout.model_inputs(), temperature=0.7, with_entropy=True)
    (output["logprobs"].sum() + output["values"].square().sum() + 0.1 * output["entropy"].sum()).backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in output.items()}, gradients


def assert_same(module, rollout: Rollout) -> None:
    (expected, gradients), (read, own) = outputs(module, rollout, False), outputs(module, rollout, True)
    assert own.keys() == gradients.keys() and read.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(read[name], value, atol=2e-5, rtol=1e-4, msg=name)
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-5 * float(scale), rtol=1e-3, msg=name)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_packed_rows_are_padded_rows(name, value_model):
    """Grouped heads, windows, soft caps, learned and rotary positions: losses and gradients, float32."""
    module = build_policy_and_value(model_of(name), value_model, None)
    torch.nn.init.normal_(module.value_head.weight)
    assert packs(module.policy, PROMPTS, module.value_trunk)
    assert module.policy.config._attn_implementation.startswith(PREFIX)
    assert_same(module, rollout_of())


@pytest.mark.parametrize("name", PADDED)
def test_an_architecture_that_cannot_keeps_its_own_attention(name, caplog):
    model = model_of(name)
    before = model.config._attn_implementation
    with caplog.at_level("WARNING"):
        assert not packs(model, PROMPTS)
    assert model.config._attn_implementation == before and "reads rows with padding" in caplog.text


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0], [3]])
def test_a_row_is_the_same_in_any_order_and_batch(order):
    module = build_policy_and_value(model_of("llama"), "shared", None)
    torch.nn.init.normal_(module.value_head.weight)
    assert packs(module.policy, PROMPTS)
    whole, part = rollout_of(), rollout_of().select(torch.tensor(order))
    expected, read = outputs(module, whole, True)[0], outputs(module, part, True)[0]
    for name, value in expected.items():
        width = read[name].shape[1]
        torch.testing.assert_close(read[name], value[order, :width], atol=2e-5, rtol=1e-4)


def test_a_row_alone_has_no_neighbour_to_see():
    """Another row's tokens change nothing of this one's."""
    module = build_policy_and_value(model_of("gpt2"), "shared", None)
    assert packs(module.policy, PROMPTS)
    rollout = rollout_of(2)
    before = outputs(module, rollout, True)[0]["logprobs"][1]
    rollout.prompt_ids[0] = rollout.prompt_ids[0].flip(0)
    torch.testing.assert_close(outputs(module, rollout, True)[0]["logprobs"][1], before, atol=0, rtol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activations_computed_anew_are_packed_too(reentrant):
    module = build_policy_and_value(wrap(model_of("llama"), LoraConfig(r=2)), "shared", None)
    assert packs(module.policy, PROMPTS)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected, gradients = outputs(module, rollout_of(), True)
    module.policy.enable_input_require_grads()
    module.train().activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    read, own = outputs(module, rollout_of(), True)
    torch.testing.assert_close(read, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_long_rows_are_left_to_the_attention_that_was_there(monkeypatch):
    module = build_policy_and_value(model_of("llama"), "shared", None)
    assert packs(module.policy, PROMPTS)
    expected = outputs(module, rollout_of(), True)
    monkeypatch.setattr("rlhf_kit.models.packed.SHORT", 4)
    monkeypatch.setattr("rlhf_kit.models.packed.short_attention", None)
    read = outputs(module, rollout_of(), True)
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("more", ["softcap", "position_bias"])
def test_what_short_attention_does_not_know_it_leaves(more):
    query, mask = torch.zeros(2, 4, 6, 8), torch.ones(2, 1, 6, 6, dtype=torch.bool)
    assert _is_short(query, mask, {"scaling": 1.0, "dropout": 0.0, "sliding_window": 3})
    assert not _is_short(query, mask, {more: 0.1})
    assert not _is_short(query, mask.float(), {}) and not _is_short(query.to("meta"), mask, {})
    long = torch.zeros(1, 1, SHORT + 1, 8)
    assert not _is_short(long, mask, {"dropout": 0.0}) and _is_short(long, mask, {"dropout": 0.1})
    assert not _is_short(query, mask, {"dropout": 1.0})


def test_other_forwards_are_as_before():
    """Padded rows, a mask, a cache, generation: bit for bit."""
    plain, model = model_of("mistral", sliding_window=5), model_of("mistral", sliding_window=5)
    assert packs(model, PROMPTS)
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    for inputs in ({}, {"attention_mask": (ids != 0).long()}):
        torch.testing.assert_close(model(ids, **inputs).logits, plain(ids, **inputs).logits, atol=0, rtol=0)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = [each.generate(ids, attention_mask=(ids != 0).long(), **options) for each in (model, plain)]
    assert torch.equal(*made)
    take_padded(model)
    assert model.config._attn_implementation == plain.config._attn_implementation


def test_nothing_of_it_is_saved(tmp_path):
    model = model_of("gpt2")
    assert packs(model, PROMPTS)
    model.save_pretrained(tmp_path)
    assert PREFIX not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa" and "transformers_version" in json.loads(
        (tmp_path / "config.json").read_text()
    )


def test_a_long_row_by_hand():
    packing = Packing(torch.tensor([[True, True, True], [True, False, False]]))
    assert packing.places.tolist() == [0, 1, 2, 3]
    x = torch.arange(4.0).view(1, 1, 4, 1)
    assert packing.pad(x).flatten().tolist() == [0, 1, 2, 3, 0, 0]
    assert packing.unpad(packing.pad(x).transpose(1, 2)).flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("heads", [4, 2])
def test_short_attention_is_pytorchs(heads):
    """Values, and gradients of query, key and value; grouped heads; a row of one token and a window."""
    torch.manual_seed(0)
    inputs = [torch.randn(3, h, 6, 8, requires_grad=True) for h in (4, heads, heads)]
    mask = torch.ones(3, 1, 6, 6, dtype=torch.bool).tril().triu(-3)
    mask[1, :, :, 4:], mask[2, :, :, 1:] = False, False
    mask[2, 0, 4:, 0] = True
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    weights = torch.randn(3, 6, 4, 8) * (torch.arange(6) < torch.tensor([6, 4, 1])[:, None])[..., None, None]
    found = []
    for attend in (
        lambda q, k, v: short_attention(q, k, v, bias, None),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        ).transpose(1, 2),
    ):
        output = attend(*inputs) * (weights != 0)
        found.append([output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_dropout_of_short_attention_by_its_own_draws():
    """The products of the probabilities that are kept, times 1 / (1 - 0.25), and their gradients; drawn anew alike."""
    inputs = [torch.randn(2, 3, 6, 8, requires_grad=True) for _ in range(3)]
    bias = torch.zeros(2, 1, 6, 6).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -1e9)
    torch.manual_seed(3)
    kept, rescaling = _drawn(torch.empty(6, 6, 6), 0.25)
    assert rescaling == 4 / 3

    def by_hand(query, key, value):
        shares = torch.softmax(query @ key.transpose(2, 3) * 0.5 + bias, -1)
        return (shares * kept.view(2, 3, 6, 6) * rescaling @ value).transpose(1, 2)

    def ours(query, key, value):
        torch.manual_seed(3)
        return short_attention(query, key, value, bias, 0.5, 0.25)

    found = []
    for attend in (ours, by_hand):
        output = attend(*inputs)
        found.append([output.detach(), *torch.autograd.grad(output.square().sum(), inputs)])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_as_many_as_it_says(rate):
    """Each of the four numbers of a draw, of 100,002; eight standard deviations."""
    kept, rescaling = _drawn(torch.empty(3, 33_334), rate)
    assert kept.shape == (3, 33_334) and set(kept.unique().tolist()) == {0, 1}
    assert rescaling == pytest.approx(1 / (1 - rate), rel=2e-5)
    for part in range(4):
        own = kept.flatten()[part::4].double()
        assert own.mean().item() == pytest.approx(1 - rate, abs=8 * (rate * (1 - rate) / len(own)) ** 0.5)
    pairs = kept.flatten()[: 2 * 50_001].view(-1, 2).double() - (1 - rate)
    assert pairs.prod(1).mean().abs() < 8 * rate * (1 - rate) / 50_001**0.5  # one tells nothing of the next


def test_rows_are_packed_within_the_context_alone():
    model = model_of("llama")
    assert packs(model, PROMPTS)
    ids = torch.tensor([[5, 6, 7, 8]])
    alone = model(ids, use_cache=False).logits
    with packed(torch.tensor([2, 2])):
        apart = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert (apart[:, 2:] - alone[:, 2:]).abs().max() > 1e-3
    torch.testing.assert_close(model(ids, use_cache=False).logits, alone, atol=0, rtol=0)


def test_policy_and_value_are_packed_both_or_neither():
    policy, trunk = model_of("gpt2", vocab_size=60), model_of("bloom").transformer
    assert not packs(policy, PROMPTS, trunk)
    assert policy.config._attn_implementation == "sdpa" and not trunk.config._attn_implementation.startswith(PREFIX)
