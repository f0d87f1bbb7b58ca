"""A cache in float32 under a model in bf16: no further from float32, in every architecture, and off elsewhere."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_kit.generation.attention import is_wide, wide_attention
from rlhf_kit.generation.reading import Cached, Step
from rlhf_kit.generation.sampling import sample

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
SIZE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"intermediate_size": 64, "max_position_embeddings": 64}
MODELS = {
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": SIZE | {"num_key_value_heads": 2},
    "qwen2": SIZE | {"num_key_value_heads": 2},
    "mistral": SIZE | {"num_key_value_heads": 2, "sliding_window": 4},
    "gpt_neox": SIZE,
    "opt": {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": SIZE,
    "gptj": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "falcon": SIZE,
    "bloom": {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**MODELS[name], "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0})
    return AutoModelForCausalLM.from_config(config).eval()


def read(model: nn.Module, autocast: bool = False, wide: bool = True) -> tuple[torch.Tensor, Cached]:
    """Logits before and after three more tokens, which are the same for all. (4, 3, V)."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with wide_attention(model) if wide else nullcontext():
            reader = Cached(model, PROMPTS, 0, 8)
            logits = [reader.read()[0]]
            for token in (14, 15, 16):
                reader.write(Step(torch.full((3,), token)))
                logits.append(reader.read()[0])
    return torch.stack(logits).float(), reader


def error(logits: torch.Tensor, truth: torch.Tensor) -> float:
    return float((logits - truth).norm() / truth.norm())


@pytest.mark.parametrize("way", ["autocast", "weights"])
@pytest.mark.parametrize("name", MODELS)
def test_no_further_from_float32_than_before(name, way):
    model = model_of(name)
    truth, reader = read(model)
    assert not reader.wide
    model = model if way == "autocast" else model.to(torch.bfloat16)
    wide, reader = read(model, way == "autocast")
    assert reader.wide == (name not in ("gptj", "falcon", "bloom"))
    if reader.wide and name != "mistral":  # whose window is transformers' own layer
        assert all(layer.keys.dtype == layer.values.dtype == torch.float32 for layer in reader.cache.layers)
    narrow, reader = read(model, way == "autocast", wide=False)
    assert not reader.wide
    assert error(wide, truth) < 1.2 * error(narrow, truth) + 1e-3
    assert error(wide, truth) < 0.03


def test_the_attention_is_computed_in_float32(monkeypatch):
    """And with rows that begin in others' places."""
    kinds, own = set(), F.scaled_dot_product_attention

    def noted(query, key, value, **options):
        kinds.add((query.dtype, key.dtype, value.dtype, torch.is_autocast_enabled("cpu")))
        return own(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    options = {"eos_ids": [0], "pad_id": 0, "max_completion_length": 6, "batch_size": 2, "compact": False}
    with torch.autocast("cpu", torch.bfloat16):
        sample(model_of("gpt2"), PROMPTS, **options)
    assert kinds == {(torch.float32, torch.float32, torch.float32, False)}


@pytest.mark.parametrize("own", ["sdpa", "packed_sdpa"])
def test_other_forwards_keep_their_attention(own):
    """That of the model that was sampled from, and transformers' own."""
    model = model_of("gpt2")
    model.set_attn_implementation(own)
    ids = torch.tensor(PROMPTS[:1])
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        _, reader = read(model, True)
        assert reader.wide and torch.equal(model(ids).logits, expected)
    assert model.config._attn_implementation == own
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_eager_attention_is_left_alone():
    model = model_of("gpt2").to(torch.bfloat16)
    model.set_attn_implementation("eager")
    assert not read(model)[1].wide


def test_an_error_within_ends_it():
    model = model_of("gpt2").to(torch.bfloat16)
    with pytest.raises(ValueError, match="stop"), wide_attention(model):
        assert is_wide(model)
        raise ValueError("stop")
    assert model.config._attn_implementation == "sdpa"
