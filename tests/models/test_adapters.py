"""LoRA: the right targets, GPT-2's transposed weights, heads that travel along, merging that leaves training alone."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_kit.data.chat import encode_completion, encode_prompt
from rlhf_kit.models.adapters import default_targets, save, wrap
from rlhf_kit.models.checkpoints import load_policy, load_reward_model
from rlhf_kit.models.heads import calibration, fold_calibration, logit_scale, score_texts, set_calibration

IDS = torch.tensor([[5, 6, 7, 8, 9]])
ENCODER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=40)


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def llama(tokenizer):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3)
    return LlamaForCausalLM(config)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def injected(model) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def trained(model) -> None:
    """Move whatever can be trained, as training would."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


def test_gpt2_gets_its_projections_the_way_they_lie(policy):
    plain = logits(policy)
    config = LoraConfig(r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's, when it is not told how Conv1D keeps its weights
        model = wrap(policy, config)
    layers = injected(model)
    assert {name.rsplit(".", 1)[1] for name in layers} == {"c_attn", "c_proj", "c_fc"}
    assert len(layers) == 2 * 4  # c_proj stands in the attention and in the MLP
    assert all(layer.fan_in_fan_out for layer in layers.values())
    attention = next(layer for name, layer in layers.items() if name.endswith("c_attn"))
    assert attention.lora_A["default"].weight.shape == (2, 32)  # what goes in
    assert attention.lora_B["default"].weight.shape == (96, 2)  # what comes out: query, key and value
    assert model.peft_config["default"].task_type == TaskType.CAUSAL_LM
    torch.testing.assert_close(logits(model), plain)  # B is zero at first
    assert (
        config.target_modules is None and config.task_type is None and not config.fan_in_fan_out
    )  # not ours to change


def test_other_architectures_get_their_own_targets(llama):
    model = wrap(llama, LoraConfig(r=2, fan_in_fan_out=True))
    layers = injected(model)
    assert {name.rsplit(".", 1)[1] for name in layers} == {"q_proj", "v_proj"}
    assert not any(layer.fan_in_fan_out for layer in layers.values())


def test_an_unknown_architecture_gets_all_linear_layers(llama):
    llama.config.model_type = "a-new-one"
    assert default_targets(llama) == "all-linear"
    names = {name.rsplit(".", 1)[1] for name in injected(wrap(llama, LoraConfig(r=2)))}
    assert {"gate_proj", "o_proj"} <= names and "lm_head" not in names


def test_what_the_user_names_is_kept(policy):
    model = wrap(policy, LoraConfig(r=2, target_modules=["c_fc"], task_type="CAUSAL_LM"))
    assert {name.rsplit(".", 1)[1] for name in injected(model)} == {"c_fc"}


def test_a_reward_models_head_is_trained_and_saved(folder, tmp_path):
    model = wrap(load_reward_model(folder), LoraConfig(r=2))
    assert model.peft_config["default"].task_type == TaskType.SEQ_CLS
    assert "score" in model.peft_config["default"].modules_to_save
    moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("score.modules_to_save" in name for name in moving)
    assert all("lora_" in name or "score.modules_to_save" in name for name in moving)
    trained(model)
    save(model, tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert [name for name in weights if "score" in name] and all("lora_" in n or "score" in n for n in weights)
    torch.testing.assert_close(logits(load_reward_model(tmp_path / "adapter")), logits(model), atol=1e-5, rtol=1e-5)
    save(model, tmp_path / "merged", merge=True)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert type(plain) is GPT2ForSequenceClassification and plain.config.num_labels == 1
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)


PROMPTS, COMPLETIONS = ["hello", "the cat sat"], ["on the mat, and so did the dog", "yes"]


def padded_logits(model, tokenizer):
    """What plain transformers makes of the texts in one batch."""
    rows = [
        encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, completion, eos=False)
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


@pytest.mark.parametrize("on", ["base", "sft"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_calibrated_reward_adapter_scores_the_same_wherever_it_is_read(
    architecture, on, policy, llama, tokenizer, tmp_path
):
    (policy if architecture == "gpt2" else llama).save_pretrained(tmp_path / "base")
    sft = wrap(load_policy(tmp_path / "base"), LoraConfig(r=2, init_lora_weights=False))
    save(sft, tmp_path / "sft")
    model = wrap(load_reward_model(tmp_path / on, tokenizer=tokenizer), LoraConfig(r=2))
    assert model.config.pad_token_id == tokenizer.eos_token_id
    trained(model)
    set_calibration(model.config, 2.5, -1.5)
    expected = score_texts(model, tokenizer, PROMPTS, COMPLETIONS)
    save(model, tmp_path / "adapter")
    save(model, tmp_path / "merged", merge=True)
    torch.testing.assert_close(score_texts(model, tokenizer, PROMPTS, COMPLETIONS), expected)
    assert calibration(model.config) == (2.5, -1.5)

    for name, left in (("adapter", -1.5), ("merged", 0.0 if architecture == "gpt2" else -1.5)):
        loaded = load_reward_model(tmp_path / name)
        assert calibration(loaded.config) == (1.0, left) and logit_scale(loaded.config) == pytest.approx(0.4)
        scores = score_texts(loaded, tokenizer, PROMPTS, COMPLETIONS)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
        if name == "merged":
            plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        elif on == "base":
            plain = AutoModelForSequenceClassification.from_pretrained(
                tmp_path / on, num_labels=1, pad_token_id=tokenizer.pad_token_id
            )
            plain = PeftModel.from_pretrained(plain, tmp_path / name)
        else:
            continue  # an adapter on an adapter is for this kit to load
        torch.testing.assert_close(padded_logits(plain, tokenizer) + left, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("own_names", [False, True])
def test_an_adapters_weights_take_the_gain_under_either_name(folder, own_names):
    model = wrap(load_reward_model(folder), LoraConfig(r=2))
    trained(model)
    set_calibration(model.config, 2.5, -1.5)
    given = get_peft_model_state_dict(model) if own_names else model.state_dict()
    state_dict, config = fold_calibration(given, model)
    assert calibration(config) == (1.0, -1.5)
    changed = {name for name in given if not torch.equal(given[name], state_dict[name])}
    word = "" if own_names else "modules_to_save.default."
    assert changed == {f"base_model.model.score.{word}weight"}
    torch.testing.assert_close(state_dict[changed.pop()], 2.5 * model.base_model.model.score.weight)


def test_a_head_that_is_not_saved_with_the_adapter_keeps_its_calibration_beside_it(folder):
    config = LoraConfig(r=2, task_type="FEATURE_EXTRACTION")
    model = wrap(load_reward_model(folder), config)
    set_calibration(model.config, 2.5, -1.5)
    state_dict, config = fold_calibration(model.state_dict(), model)
    assert calibration(config) == (2.5, -1.5)
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_on_an_encoder_folds_all_of_the_calibration(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=40)
    BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(tmp_path / "base")
    model = wrap(load_reward_model(tmp_path / "base"), LoraConfig(r=2))
    trained(model)
    expected = 2.5 * logits(model) - 1.5
    set_calibration(model.config, 2.5, -1.5)
    for merge in (False, True):
        save(model, tmp_path / f"saved-{merge}", merge=merge)
        loaded = load_reward_model(tmp_path / f"saved-{merge}")
        assert calibration(loaded.config) == (1.0, 0.0)
        torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "base, saved",
    [
        (BertForMaskedLM(BertConfig(**ENCODER)), {"classifier", "pooler"}),
        (DebertaV2ForMaskedLM(DebertaV2Config(**ENCODER)), {"classifier", "pooler"}),
        (
            DistilBertForMaskedLM(DistilBertConfig(vocab_size=40, dim=32, hidden_dim=48, n_layers=1, n_heads=4)),
            {"classifier", "pre_classifier"},
        ),
    ],
    ids=lambda x: getattr(getattr(x, "config", None), "model_type", ""),
)
def test_what_an_encoders_checkpoint_lacks_is_saved_with_the_adapter(tmp_path, base, saved):
    """Poolers and the like are new in a reward model: drawn anew at the next loading, they would change the scores."""
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2)
    model = wrap(load_reward_model(tmp_path / "base"), config)
    assert saved <= set(model.peft_config["default"].modules_to_save) and config.modules_to_save is None
    trained(model)
    expected = logits(model)
    for merge in (False, True):
        save(model, tmp_path / f"saved-{merge}", merge=merge)
        torch.testing.assert_close(
            logits(load_reward_model(tmp_path / f"saved-{merge}")), expected, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("merge", [False, True])
def test_a_saved_policy_comes_back_the_same(folder, tmp_path, merge):
    model = wrap(load_policy(folder), LoraConfig(r=2))
    trained(model)
    save(model, tmp_path / "saved", merge=merge)
    assert (tmp_path / "saved" / "adapter_config.json").exists() != merge
    assert (tmp_path / "saved" / "model.safetensors").exists() == merge
    if merge:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    else:  # peft alone reads it too
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "saved")
        weights = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        assert all("lora_" in name for name in weights)  # no vocabulary beside it
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    again = load_policy(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(again) - logits(load_policy(folder))).abs().max() > 1e-2
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again.transformer.wte.weight, load_policy(folder).transformer.wte.weight)


def test_merging_leaves_the_model_in_training_alone(folder, tmp_path):
    model = wrap(load_policy(folder), LoraConfig(r=2))
    trained(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = logits(model)
    save(model, tmp_path / "merged", merge=True)
    assert isinstance(model, PeftModel) and len(injected(model)) == 8
    assert not any(layer.merged for layer in injected(model).values())
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model), expected)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(load_policy(folder)))


def test_a_model_without_adapters_is_saved_as_it_is(policy, tmp_path):
    save(policy, tmp_path, merge=True)
    assert torch.equal(logits(load_policy(tmp_path)), logits(policy))
