"""Reward models that read all answers as one long row: scores and gradients are those of padded rows."""

import pytest
import torch
from models.test_packed import GPT2, PACKED, SHAPE
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_kit.models.forward import packed_rows, pad_right
from rlhf_kit.models.heads import check_scores, sequence_scores
from rlhf_kit.models.packed import is_packed, take_packed, take_padded

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14], [15, 16, 17, 18, 19]]


def reward_of(name: str):
    torch.manual_seed(0)
    shape = SHAPE | PACKED.get(name, GPT2 if name == "gpt2" else {})
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **shape, num_labels=1)).eval()


def scored(model) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    scores = sequence_scores(model, *pad_right(ROWS, 0))
    (scores * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2", "gemma2", "opt", "gpt_neox", "phi"])
def test_packed_scores_are_padded_scores(name):
    model = reward_of(name)
    expected, gradients = scored(model)
    check_scores(model, ROWS)
    assert is_packed(model)
    scores, own = scored(model)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    scale = float(max(gradient.abs().max() for gradient in gradients.values()))
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(own[parameter], gradient, atol=1e-5 * scale, rtol=1e-3, msg=parameter)


def test_a_model_that_would_score_otherwise_keeps_its_padding(monkeypatch):
    model = reward_of("llama")
    monkeypatch.setattr("rlhf_kit.models.heads.packed_rows", lambda ids, lengths: broken(ids, lengths))
    check_scores(model, ROWS)
    assert not is_packed(model)
    expected, _ = scored(model)
    take_packed(model)
    assert not torch.allclose(scored(model)[0], expected)
    take_padded(model)


def broken(ids, lengths):
    rows = packed_rows(ids, lengths)
    return rows | {"input_ids": rows["input_ids"].flip(1)}


def test_encoders_and_models_without_the_interface_stay_as_they_are():
    for model in (reward_of("bloom"), reward_of("bert")):
        before = model.config._attn_implementation
        check_scores(model, ROWS)
        assert model.config._attn_implementation == before
