"""QANet's equations against loops and plain torch, written here from the paper."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rlhf_kit.errors import UserError
from rlhf_kit.models.qanet import QANetConfig
from rlhf_kit.models.qanet.layers import (
    CharacterEmbedding,
    ContextQueryAttention,
    EncoderStack,
    FeedForward,
    Highway,
    Residual,
    SelfAttention,
    SeparableConv,
    position_encoding,
)

B, T, D = 2, 6, 8


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(B, T, D)


@pytest.fixture
def mask():
    return torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def test_positions_are_the_sinusoids_of_the_formula():
    encoding = position_encoding(5, 4)
    for t in range(5):
        expected = [math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)]  # 10000^(2/4) = 100
        assert encoding[t].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kernel", [3, 5])
def test_separable_convolution_is_a_window_a_channel_then_a_mix(x, mask, kernel):
    layer = SeparableConv(D, kernel)
    expected = torch.zeros(B, T, D)
    for b in range(B):
        for t in range(T):
            channels = torch.zeros(D)
            for k in range(kernel):
                at = t + k - kernel // 2
                if 0 <= at < T and mask[b, at]:  # padding counts as nothing
                    channels += layer.depthwise.weight[:, 0, k] * x[b, at]
            expected[b, t] = (layer.pointwise.weight @ channels + layer.pointwise.bias).clamp(min=0)
    torch.testing.assert_close(layer(x, mask), expected)


def test_separable_convolution_costs_what_the_paper_says():
    layer = SeparableConv(D, 7)
    assert sum(p.numel() for p in layer.parameters()) == 7 * D + D * D + D


def test_self_attention_is_torchs(x, mask):
    ours = SelfAttention(D, heads=2)
    theirs = nn.MultiheadAttention(D, 2, batch_first=True)
    theirs.in_proj_weight.data = ours.queries_keys_values.weight.data
    theirs.in_proj_bias.data = ours.queries_keys_values.bias.data.normal_()
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.output.weight.data, ours.output.bias.data
    torch.testing.assert_close(ours(x, mask), theirs(x, x, x, key_padding_mask=~mask)[0])


def test_highway_is_gated_between_transform_and_input(x):
    layer = Highway(D)
    gate = 1 / (1 + torch.exp(-(x @ layer.gate.weight.T + layer.gate.bias)))
    transformed = torch.relu(x @ layer.transform.weight.T + layer.transform.bias)
    torch.testing.assert_close(layer(x), gate * transformed + (1 - gate) * x)
    layer.gate.bias.data.fill_(-1e9)
    torch.testing.assert_close(layer(x), x)  # a shut gate carries the input


def test_characters_are_embedded_convolved_and_the_largest_taken():
    config = QANetConfig(char_vocab_size=7, char_dim=3, char_kernel=3, word_length=4)
    layer = CharacterEmbedding(config).eval()
    word = torch.tensor([2, 5, 6, 0])
    vectors = torch.cat([torch.zeros(1, 3), layer.characters.weight[word], torch.zeros(1, 3)])
    columns = [layer.conv.bias + torch.einsum("ock,kc->o", layer.conv.weight, vectors[at : at + 3]) for at in range(4)]
    torch.testing.assert_close(layer(word[None])[0], torch.stack(columns).relu().amax(0))


def trilinear(layer, context, question):
    """S by its definition: w [c, q, c * q] for each pair."""
    w = layer.weight.flatten()
    return torch.stack([torch.stack([w @ torch.cat([c, q, c * q]) for q in question]) for c in context])


def test_context_query_attention_is_the_papers_for_each_pair_of_words(x, mask):
    layer = ContextQueryAttention(D)
    layer.weight.data.normal_()
    question, question_mask = torch.randn(B, 3, D), torch.tensor([[True, True, False], [True, True, True]])
    output = layer(x, mask, question, question_mask)
    assert output.shape == (B, T, 4 * D)
    for b in range(B):
        c, q = x[b][mask[b]], question[b][question_mask[b]]
        s = trilinear(layer, c, q)
        over_question, over_context = s.softmax(1), s.softmax(0)
        a = over_question @ q
        squared = over_question @ over_context.T  # (C, C), as the paper writes it
        expected = torch.cat([c, a, c * a, c * (squared @ c)], dim=-1)
        torch.testing.assert_close(output[b][mask[b]], expected)


def test_context_query_attention_keeps_no_tensor_of_all_pairs():
    """The sizes of what is kept for the backward: none is (B, C, Q, 3d), of which there would be 24 d C Q bytes."""
    layer, sizes = ContextQueryAttention(64), []
    context, question = torch.randn(1, 50, 64, requires_grad=True), torch.randn(1, 40, 64, requires_grad=True)
    full = [torch.ones(1, n, dtype=torch.bool) for n in (50, 40)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(context, full[0], question, full[1])
    assert max(sizes) <= 50 * 4 * 64


class Ones(nn.Module):
    def forward(self, x, mask):
        return torch.ones_like(x)


def test_stochastic_depth_leaves_rows_out_and_keeps_the_expectation():
    layer = Residual(Ones(), D, dropout=0.0, survival=0.8)
    x = torch.zeros(20_000, 1, D)
    change = layer.train()(x, None)[:, 0]
    assert set(change.unique().tolist()) == {0.0, 1.25}  # left out, or 1 / 0.8
    assert (change == change[:, :1]).all()  # a row as a whole
    assert change.mean().item() == pytest.approx(1.0, abs=0.015)  # 4 standard errors
    torch.testing.assert_close(layer.eval()(x, None), x + 1)


def test_survival_falls_evenly_to_the_papers_at_the_last_sublayer():
    config = QANetConfig(hidden_size=D, num_attention_heads=2, survival=0.9)
    stack = EncoderStack(config, blocks=2, convs=2, kernel=3)
    rates = [sublayer.survival for block in stack.blocks for sublayer in block]
    assert rates == pytest.approx([1 - 0.1 * l / 8 for l in range(1, 9)])  # noqa: E741
    kinds = [type(sublayer.layer) for sublayer in stack.blocks[0]]
    assert kinds == [SeparableConv, SeparableConv, SelfAttention, FeedForward]


def test_an_encoder_block_adds_positions_then_each_sublayer_of_the_normed(x, mask):
    stack = EncoderStack(QANetConfig(hidden_size=D, num_attention_heads=2), blocks=2, convs=1, kernel=3).eval()
    expected = x
    for block in stack.blocks:
        expected = expected + position_encoding(T, D)
        for sublayer in block:
            expected = expected + sublayer.layer(F.layer_norm(expected, (D,)), mask)
    torch.testing.assert_close(stack(x, mask), expected)


@pytest.mark.parametrize(
    "sizes, told",
    [({"hidden_size": 24}, "hidden_size 24"), ({"model_kernel": 4, "char_kernel": 2}, "char_kernel, model_kernel")],
)
def test_sizes_that_do_not_fit_are_refused(sizes, told):
    with pytest.raises(UserError, match=told):
        QANetConfig(**sizes)
