"""QANet's parts (Yu et al. 2018, arXiv:1804.09541, section 2.2).

Notation: B batch, T tokens, C context, Q question, d hidden size, K kernel. Masks are bool, True = a real token.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_kit.models.qanet.config import QANetConfig


def position_encoding(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids: PE(t, 2i) = sin(t / 10000^(2i / size)), PE(t, 2i + 1) = cos of the same. -> (length, size) float32.

    Vaswani et al. 2017, section 3.5.
    """
    wavelengths = torch.exp(torch.arange(0, size, 2, device=device) * (-math.log(10000.0) / size))
    angles = torch.arange(length, device=device)[:, None] * wavelengths
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class LastLinear(nn.Linear):
    """The last map of a sublayer; it starts small, so that the sum over the stack starts of the size of its input."""


class SeparableConv(nn.Module):
    """A convolution over each channel alone, then one over all channels a token, then ReLU. (B, T, d) -> (B, T, d).

    Chollet 2017, "Xception". The first has no bias: the second's does the same.
    """

    def __init__(self, size: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=size, bias=False)
        self.pointwise = LastLinear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.masked_fill(~mask[..., None], 0)  # padding is to look like the end of the row
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return F.relu(self.pointwise(x))


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2). (B, T, d) -> (B, T, d)."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(size, 3 * size)
        self.output = LastLinear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, d / heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.output(seen.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """(B, T, d) -> (B, T, d); as wide inside as outside."""

    def __init__(self, size: int):
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.outer = LastLinear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.outer(F.relu(self.inner(x)))


class Residual(nn.Module):
    """x + f(layer norm(x)), f left out with probability 1 - survival in training. (B, T, d) -> (B, T, d).

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382, section 3), drawn a row; a layer that stays is divided by
    its survival, so that the expectation is what is computed without training. Every layer takes part in every
    backward, as DDP needs.
    """

    def __init__(self, layer: nn.Module, size: int, dropout: float, survival: float):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.survival = survival

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        change = self.dropout(self.layer(self.norm(x), mask))
        if self.training:
            stays = torch.bernoulli(change.new_full((len(x), 1, 1), self.survival))
            change = change * stays / self.survival
        return x + change


class EncoderStack(nn.Module):
    """Blocks of positions, convolutions, self-attention and a feed-forward layer. (B, T, d), (B, T) -> (B, T, d).

    Sublayer l of the L in the stack survives with probability 1 - l / L (1 - p_L).
    """

    def __init__(self, config: QANetConfig, blocks: int, convs: int, kernel: int):
        super().__init__()
        size, sublayers = config.hidden_size, convs + 2
        depth = blocks * sublayers
        survival = [1 - number / depth * (1 - config.survival) for number in range(1, depth + 1)]
        self.blocks = nn.ModuleList()
        for start in range(0, depth, sublayers):
            layers = [SeparableConv(size, kernel) for _ in range(convs)]
            layers += [SelfAttention(size, config.num_attention_heads), FeedForward(size)]
            parts = zip(layers, survival[start : start + sublayers], strict=True)
            self.blocks.append(nn.ModuleList(Residual(layer, size, config.dropout, rate) for layer, rate in parts))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        positions = position_encoding(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for block in self.blocks:
            x = x + positions
            for sublayer in block:
                x = sublayer(x, mask)
        return x


class Highway(nn.Module):
    """g H(x) + (1 - g) x with a gate g (Srivastava et al. 2015, arXiv:1505.00387, equation 3). (.., d) -> (.., d)."""

    def __init__(self, size: int):
        super().__init__()
        self.transform = nn.Linear(size, size)
        self.gate = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, F.relu(self.transform(x)), torch.sigmoid(self.gate(x)))


class CharacterEmbedding(nn.Module):
    """A vector for a word from its first characters: embed, convolve, take the maximum. (N, W) -> (N, char_dim)."""

    def __init__(self, config: QANetConfig):
        super().__init__()
        self.characters = nn.Embedding(config.char_vocab_size, config.char_dim, padding_idx=0)
        self.dropout = nn.Dropout(config.char_dropout)
        self.conv = nn.Conv1d(config.char_dim, config.char_dim, config.char_kernel, padding=config.char_kernel // 2)

    def forward(self, char_ids: Tensor) -> Tensor:
        vectors = self.dropout(self.characters(char_ids)).transpose(1, 2)  # (N, char_dim, W)
        return F.relu(self.conv(vectors)).amax(-1)


class ContextQueryAttention(nn.Module):
    """What the question says to each word of the context, and the context to itself through the question.

    S(c, q) = w [c, q, c * q] is three products, never a (B, C, Q, 3d) tensor. With R its softmax over the question and
    L over the context: A = R q, B = R L^T c, output [c, A, c * A, c * B]. (B, C, d), (B, Q, d) -> (B, C, 4d).
    Seo et al. 2016, arXiv:1611.01603, section 2; Xiong et al. 2016, arXiv:1611.01604, section 2.2.
    """

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, size))  # of c, q and c * q

    def forward(self, context: Tensor, context_mask: Tensor, question: Tensor, question_mask: Tensor) -> Tensor:
        of_context, of_question, of_both = self.weight
        scores = (context * of_both) @ question.transpose(1, 2)  # (B, C, Q)
        scores = scores + (context @ of_context)[:, :, None] + (question @ of_question)[:, None, :]
        lowest = torch.finfo(scores.dtype).min
        over_question = scores.masked_fill(~question_mask[:, None, :], lowest).softmax(dim=2)
        over_context = scores.masked_fill(~context_mask[:, :, None], lowest).softmax(dim=1)
        a = over_question @ question
        b = over_question @ (over_context.transpose(1, 2) @ context)  # this order needs no (B, C, C)
        return torch.cat([context, a, context * a, context * b], dim=-1)
