"""Tiny models of any architecture: one rule that shrinks a configuration by what its fields are called."""

from __future__ import annotations

import re

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_kit.models.forward import context_of

CONTEXT = 64
WINDOW = 8  # below the length of the texts that are tried, so that windows slide
# The first pattern that a whole-number field's name holds says its size; a field of none of them stays as it is.
SIZES = [
    (r"token_id|_index$|_idx$|version|_bits|seed|^use_|kernel|d_conv|conv_l_cache|interval|period|_freq|every", None),
    (r"max_pos|n_positions|n_ctx|max_seq|seq_len|max_target|max_source", CONTEXT),
    (r"window|chunk|attention_span|block_size|block_length", WINDOW),
    (r"first_k_dense|n_dense|num_dense", 1),
    (r"experts?_per_tok|top_?k|num_selected|moe_k$|num_experts_per|experts_top", 2),
    (r"shared_expert|n_group|topk_group|num_nextn|shared_experts", 1),
    (r"(size|dim|width).*expert|expert.*(size|dim|width)", 32),
    (r"experts?$|num_experts|num_local", 4),
    (r"layers?$|n_layer|num_blocks|depth|blocks$|cycles?$", 2),
    (r"(kv|key_value|query_group).*heads?|heads?_kv|num_key_value|multi_query_group|n_kv", 2),
    (r"heads?$|head_num|n_head", 4),
    (r"rotary_dim|rotary_ndims", 4),
    (r"head.*(dim|size)|d_head|d_kv|v_head|head_v|dim_head", 8),
    (r"rank$|lora", 8),
    (r"state_size|d_state|ssm.*state", 8),
    (r"intermediate|ffn|n_inner|d_ff|feed_?forward|inner_dim|ff_dim|mlp.*(size|dim)", 64),
    (r"hidden|d_model|n_embd|embd?_|embed|embedding|dim$|width|d_inner|mamba_d_ssm|channels", 32),
]
# What must fit together and no name tells.
FACTS = {
    "bamba": {"mamba_n_heads": 8},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
}


def shrunk(config: PretrainedConfig, vocab_size: int) -> dict[str, int]:
    """Smaller values for the whole-number fields of a configuration."""
    values = {}
    for name, value in config.to_dict().items():
        if type(value) is not int or value <= 1:
            continue
        if re.search(r"vocab_size|n_words", name):
            values[name] = vocab_size
            continue
        size = next((size for pattern, size in SIZES if re.search(pattern, name)), None)
        if size is not None and value > size:
            values[name] = size
    return values


def kinds_of_layers(config: PretrainedConfig) -> int:
    """The fewest layers from the bottom that hold one of every kind, two at least; hybrids alternate."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    wanted = set(kinds)
    return next((n for n in range(2, len(kinds) + 1) if set(kinds[:n]) == wanted), 2)


def tiny_config(model_type: str, tokenizer) -> PretrainedConfig:
    """The shrunk configuration of a model type with `tokenizer`'s vocabulary."""
    config = AutoConfig.for_model(model_type)
    if config.get_text_config() is not config:
        raise ValueError("reads more than text; its language model stands under a name of its own")
    values = shrunk(config, len(tokenizer))
    layers = kinds_of_layers(config)
    values = {
        name: layers if re.search(r"^(num_hidden_layers|n_layers?|num_layers)$", name) else n
        for name, n in values.items()
    }
    facts = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    values |= facts | context_of(config, {}, CONTEXT)
    fields = config.to_dict()
    off = re.compile("drop|aux_loss")  # what a text's likelihood has no part in
    values |= {name: 0.0 for name, value in fields.items() if off.search(name) and type(value) is float}
    if "is_decoder" in fields:
        values["is_decoder"] = True
    return type(config)(**values | FACTS.get(model_type, {}))


def tiny_model(model_type: str, tokenizer, seed: int = 0) -> PreTrainedModel:
    """A random tiny causal language model, its weights large enough for its numbers to tell something."""
    config = tiny_config(model_type, tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def model_types() -> list[str]:
    """Every architecture that transformers has a causal language model of."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING_NAMES))
