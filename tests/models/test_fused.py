"""One operation in place of five: the same function, the same gradients, the same model on disk."""

import copy

import torch
from transformers import AutoModelForCausalLM

from rlhf_kit.models.fused import fuse_activations

IDS = torch.tensor([[5, 6, 7, 8]])


def test_the_function_and_its_gradient_are_the_same(policy, tmp_path):
    fused = copy.deepcopy(policy)
    fuse_activations(fused)
    assert [type(block.mlp.act) for block in fused.transformer.h] == [torch.nn.GELU] * 2
    for model in (policy, fused):
        model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(fused(IDS).logits, policy(IDS).logits, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(fused.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    fused.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.activation_function == "gelu_new"
