"""A model handed over with an adapter, or a config for one: each is right or refused by name, before training."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import trainable
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.models.merging import merged
from rlhf_kit.models.roles import reference_of, refuse_shared_weights

IDS = torch.tensor([[5, 6, 7, 8, 9]])
LORA = dict(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def lora(**options) -> LoraConfig:
    return LoraConfig(**LORA | options)


def handed(policy, **options) -> PeftModel:
    return get_peft_model(policy, lora(task_type="CAUSAL_LM", **options))


def saved(policy, folder) -> PeftModel:
    """An adapter that was saved and loaded, its base too: `PeftModel.from_pretrained` as most call it."""
    policy.save_pretrained(folder / "base")
    handed(GPT2LMHeadModel.from_pretrained(folder / "base")).save_pretrained(folder / "sft")
    return PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(folder / "base"), folder / "sft")


def with_second(policy, folder) -> PeftModel:
    model = handed(policy)
    model.add_adapter("other", lora())
    return model


def after(policy, *calls) -> PeftModel:
    model = handed(policy)
    for call in calls:
        getattr(model, call)()
    return model


def scorer(policy, folder, **options) -> PeftModel:
    policy.save_pretrained(folder / "lm")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "lm", num_labels=1)
    return get_peft_model(model, lora(**options))


def with_transformers_adapter(policy, folder):
    policy.add_adapter(lora())
    return policy


def unfrozen(policy, folder) -> PeftModel:
    model = handed(policy)
    model.get_base_model().transformer.ln_f.requires_grad_(True)
    return model


def prompt_tuned(policy, folder):
    return get_peft_model(policy, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


REFUSED = {
    "another adapter on it": (lambda p, f: (handed(p), LoraConfig()), "peft_config asks for another"),
    "frozen": (lambda p, f: (saved(p, f), None), "every parameter is frozen .*is_trainable=True"),
    "merged by peft": (lambda p, f: (saved(p, f).merge_and_unload(), None), "every parameter is frozen"),
    "several": (lambda p, f: (with_second(p, f), None), "the adapters 'default', 'other'"),
    "another name": (lambda p, f: (get_peft_model(p, lora(), adapter_name="mine"), None), "the adapters 'mine'"),
    "merged in": (lambda p, f: (after(p, "merge_adapter"), None), "adapter is merged and would learn nothing"),
    "off": (lambda p, f: (after(p, "disable_adapter_layers"), None), "adapter is switched off"),
    "base trained too": (lambda p, f: (unfrozen(p, f), None), r"2 weights outside its adapter .*ln_f"),
    "tied": (
        lambda p, f: (handed(p, target_modules=["wte"], fan_in_fan_out=False), None),
        "'wte' is tied to 'lm_head'",
    ),
    "tied head": (
        lambda p, f: (handed(p, target_modules=["lm_head"], fan_in_fan_out=False), None),
        "'lm_head' is tied",
    ),
    "transformers' own": (lambda p, f: (with_transformers_adapter(p, f), None), "an adapter that transformers put in"),
    "head lost": (lambda p, f: (scorer(p, f), None), "'score' is new, and would not be saved"),
    "a prompt": (lambda p, f: (prompt_tuned(p, f), None), "PromptTuningConfig is not part of the weights"),
    "IA3": (lambda p, f: (p, IA3Config()), "peft_config is a IA3Config"),
    "tied, by pattern": (lambda p, f: (p, LoraConfig(target_modules=r".*(wte|c_fc)")), "'wte' is tied to 'lm_head'"),
    "no such pattern": (lambda p, f: (p, LoraConfig(target_modules=r".*q_proj")), "no '.*q_proj'"),
    "no pattern": (lambda p, f: (p, LoraConfig(target_modules="(")), "not a regular expression"),
    "in part": (lambda p, f: (p, LoraConfig(target_modules=["c_fc", "fc"])), "no 'fc'"),
    "a part of a name": (lambda p, f: (p, LoraConfig(modules_to_save=["head"])), "no 'head'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_or_saved_right_is_refused(case, policy, tmp_path):
    make, message = REFUSED[case]
    model, config = make(policy, tmp_path)
    with pytest.raises(UserError, match=message):
        trainable(model, config)


RIGHT = {
    "as handed over": lambda p, f: (handed(p), None),
    "from a folder": lambda p, f: (
        PeftModel.from_pretrained(saved(p, f).unload(), f / "sft", is_trainable=True),
        None,
    ),
    "a head that is saved": lambda p, f: (scorer(p, f, task_type="SEQ_CLS"), None),
    "all linear, in a list": lambda p, f: (p, LoraConfig(target_modules=["all-linear"])),
    "a tied embedding in full": lambda p, f: (p, LoraConfig(modules_to_save=["wte"])),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_trained(case, policy, tmp_path):
    model = trainable(*RIGHT[case](policy, tmp_path))
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_a_tied_embedding_made_elsewhere_is_untied_when_merged(target, tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=40)
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", target], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, config)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(load_policy(tmp_path / "plain")), expected, atol=1e-5, rtol=1e-5)


def test_small_updates_of_half_precision_weights_are_rounded_once(policy):
    model = handed(policy.to(torch.bfloat16))
    layer = model.get_base_model().transformer.h[0].attn.c_attn
    expected = layer.get_base_layer().weight.float() + layer.get_delta_weight("default").float()
    plain = merged(model)
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain.transformer.h[0].attn.c_attn.weight, expected.to(torch.bfloat16))


# --- the reference of PPO ----------------------------------------------------------------------------------------


def test_the_reference_of_a_handed_over_adapter_has_the_adapter(policy):
    plain = logits(policy)
    model = handed(policy)
    reference = reference_of(model, None, None)
    assert reference is not model and torch.equal(logits(reference), logits(model))
    assert (logits(reference) - plain).abs().max() > 0.01


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"bias": "all"}, {}])
def test_adapters_that_change_their_base_need_a_reference_of_its_own(options, policy):
    """PiSSA moves part of the base into the adapter, and a trained bias stays when the adapter is off."""
    plain = logits(policy)
    config = LoraConfig(r=2, **options)
    reference = reference_of(policy, None, config)
    model = trainable(policy, config)
    assert (reference is None) == (options == {})
    if reference is None:
        with model.disable_adapter():
            assert torch.equal(logits(model), plain)
    else:
        assert torch.equal(logits(reference), plain)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "pissa", "mica"])
def test_an_adapter_loads_and_merges_as_it_was_trained_however_it_started(start, policy, tmp_path):
    policy.save_pretrained(tmp_path / "base")
    model = trainable(load_policy(tmp_path / "base"), LoraConfig(r=2, init_lora_weights=start))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(load_policy(tmp_path / "adapter")), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "eva", "lora_ga", "pisa", "PiSSA"])
def test_a_start_that_loading_does_not_repeat_is_refused(start, policy):
    """PiSSA's quick form draws, CorDA, EVA and LoRA-GA look at data, LoftQ quantizes."""
    config = LoraConfig(r=2)
    config.init_lora_weights = start  # LoftQ's class asks for scipy before we can
    with pytest.raises(UserError, match=f"^LoRA: init_lora_weights '{start}' depends on data"):
        trainable(policy, config)
    if start.startswith("pissa"):
        model = get_peft_model(policy, LoraConfig(r=2, init_lora_weights=start, fan_in_fan_out=True))
        with pytest.raises(UserError, match=f"init_lora_weights '{start}' depends on data"):
            trainable(model, None)


def test_olora_is_refused_on_transposed_weights(policy):
    with pytest.raises(UserError, match="^LoRA: init_lora_weights 'olora' does not know the transposed weights"):
        trainable(policy, LoraConfig(r=2, init_lora_weights="olora"))


def test_a_reference_or_reward_with_the_policys_weights_is_refused(policy, reward_model):
    with pytest.raises(UserError, match="ref_model uses the policy's own weights"):
        refuse_shared_weights(policy, policy, [])
    model = handed(copy.deepcopy(policy))
    with pytest.raises(UserError, match="ref_model uses the policy's own weights"):
        refuse_shared_weights(model, model.get_base_model(), [])
    reward_model.transformer = policy.transformer
    with pytest.raises(UserError, match="A reward model uses the policy's own weights"):
        refuse_shared_weights(policy, None, [len, reward_model])
    refuse_shared_weights(policy, copy.deepcopy(policy), [copy.deepcopy(reward_model)])
