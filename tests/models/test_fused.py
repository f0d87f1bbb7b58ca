"""One operation in place of five: the same function, the same gradients, the same model on disk."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_kit.models.fused import fuse

IDS = torch.tensor([[5, 6, 7, 8]])


def test_the_function_and_its_gradient_are_the_same(policy, tmp_path):
    fused = copy.deepcopy(policy)
    fuse(fused)
    assert [type(block.mlp.act) for block in fused.transformer.h] == [torch.nn.GELU] * 2
    for model in (policy, fused):
        model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(fused(IDS).logits, policy(IDS).logits, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(fused.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    fused.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.activation_function == "gelu_new"


def sums(model, rows):
    """The gradients of two forwards: a token twice in one, tokens that the other has too."""
    model.zero_grad()
    loss = sum(model(row, labels=row).loss for row in rows)
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_an_embedding_is_of_the_rows_used(tied):
    """Added to the head's where they are one weight; PyTorch's own where they are not."""
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16, tie_word_embeddings=tied)
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(config).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert ("forward" in vars(fused.transformer.wte)) == tied
    rows = [torch.tensor([[5, 6, 5, 8]]), torch.tensor([[8, 9, 10]])]
    torch.testing.assert_close(sums(fused, rows), sums(plain, rows), atol=1e-6, rtol=1e-5)
    assert all(p.grad.layout == torch.strided for p in fused.parameters())


def test_an_embedding_with_padding_keeps_its_own_gradient():
    """The padding's row learns nothing: PyTorch leaves its gradient out."""
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40,
            pad_token_id=3, tie_word_embeddings=True,
        )
    )  # fmt: skip
    fuse(model)
    assert "forward" not in vars(model.model.embed_tokens)
