"""A model's weights come from its files: what they lack or have too much of is told, what is new by design is not."""

import json
import logging

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Model, LlamaConfig, LlamaForCausalLM

from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import save, wrap
from rlhf_kit.models.checkpoints import load_masked_lm, load_policy, load_reward_model
from rlhf_kit.processes import quiet

LORA = LoraConfig(r=2, init_lora_weights=False)


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def rewrite(folder, change, name="model.safetensors"):
    weights = load_file(folder / name)
    save_file(change(weights), folder / name, metadata={"format": "pt"})


def without(word):
    return lambda weights: {name: weight for name, weight in weights.items() if word not in name}


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_layers_that_the_files_lack_are_told(load, folder):
    rewrite(folder, without("h.1."))
    with pytest.raises(UserError, match=r"files lack 12 of the weights of GPT2\w+, .*transformer\.h\.1\.attn"):
        load(folder)


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_layers_that_the_config_lacks_are_told(load, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 1}))
    with pytest.raises(UserError, match=r"layers that its config.json does not have: transformer\.h\.1\.attn"):
        load(folder)


def test_a_reward_model_without_its_head_is_none(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    rewrite(tmp_path, without("score"))
    with pytest.raises(UserError, match="files lack 1 of the weights .* score.weight"):
        load_reward_model(tmp_path)


def test_an_untied_head_that_is_missing_is_told(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lm_head.weight"):
        load_policy(tmp_path)
    assert load_reward_model(tmp_path).config.num_labels == 1  # whose head is new by design


def test_a_masked_lm_without_its_head_is_told(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cls.predictions"):
        load_masked_lm(tmp_path)


def test_what_is_new_or_tied_by_design_passes_without_a_word(folder, policy, tmp_path, caplog):
    quiet()
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    GPT2Model(policy.config).save_pretrained(tmp_path / "trunk")
    reports = []
    logger = logging.getLogger("transformers.modeling_utils")
    handler = logging.Handler()
    handler.emit = reports.append
    logger.addHandler(handler)
    try:
        load_policy(folder)
        load_policy(tmp_path / "trunk")  # the head is the embedding
        load_reward_model(folder)
        load_reward_model(tmp_path / "bert")  # head and pooler are new, and what predicted tokens goes
        load_masked_lm(tmp_path / "bert")
    finally:
        logger.removeHandler(handler)
    assert not reports and "that the model does not use" not in caplog.text


def test_a_weight_without_a_place_is_told(folder, caplog):
    rewrite(folder, lambda weights: {**weights, "transformer.extra.weight": torch.zeros(2)})
    load_policy(folder)
    assert "weights that the model does not use are left out: transformer.extra.weight" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (without("h.1."), "lacks 8 weights: .*h.1.attn"),
        (
            lambda weights: (
                weights | {name.replace("h.1.", "h.2."): weight.clone() for name, weight in weights.items()}
            ),
            "has, unknown to its base, 8 weights: .*h.2.attn",
        ),
    ],
)
def test_an_incomplete_adapter_or_that_of_a_deeper_model_is_told(change, message, folder, tmp_path):
    save(wrap(load_policy(folder), LORA), tmp_path / "adapter")
    rewrite(tmp_path / "adapter", change, "adapter_model.safetensors")
    for load in (load_policy, load_reward_model):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "adapter")


def test_a_head_in_the_adapter_is_not_missing(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    full = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    full.save_pretrained(tmp_path / "base")
    save(wrap(load_policy(tmp_path / "base"), LoraConfig(r=2, modules_to_save=["lm_head"])), tmp_path / "adapter")
    full.model.save_pretrained(tmp_path / "base")
    torch.testing.assert_close(load_policy(tmp_path / "adapter").lm_head.weight, full.lm_head.weight)
