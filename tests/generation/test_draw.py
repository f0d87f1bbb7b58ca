"""The draw in two levels: the tokens of one sum over the whole vocabulary."""

import math

import pytest
import torch

from rlhf_kit.generation.sampling import BLOCK, draw

ALMOST_ONE = 1 - 2**-24  # the largest that torch.rand gives


def in_one_level(logprobs, uniforms):
    cumulative = logprobs.exp().double().cumsum(-1)
    points = uniforms[:, None].double() * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(1)


@pytest.mark.parametrize("vocabulary", [1, 2, 60, BLOCK - 1, BLOCK, BLOCK + 1, 1500, 50257])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_tokens_are_those_of_one_sum(vocabulary, spread):
    generator = torch.Generator().manual_seed(vocabulary)
    rows = 2**22 // max(vocabulary, 2**10)
    logprobs = (torch.randn(rows, vocabulary, generator=generator) * spread).log_softmax(-1)
    uniforms = torch.rand(rows, generator=generator)
    uniforms[:2] = torch.tensor([0.0, ALMOST_ONE])
    assert torch.equal(draw(logprobs, uniforms), in_one_level(logprobs, uniforms))


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK + 5])
def test_ties_and_places_between_tokens(vocabulary):
    """Tokens of equal probability, some that are impossible before them: the k-th stands from k / n to (k + 1) / n."""
    count = 2 ** int(math.log2(vocabulary))
    logprobs = torch.full((count, vocabulary), -math.inf)
    logprobs[:, vocabulary - count :] = -math.log(count)
    drawn = draw(logprobs, (torch.arange(count) + 0.5) / count)
    assert torch.equal(drawn, torch.arange(count) + vocabulary - count)
    logprobs[:, 0] = 0.0
    logprobs[:, 1:] = -math.inf
    assert not draw(logprobs, torch.arange(count) / count).any()


@pytest.mark.parametrize("uniform", [0.0, 0.5, ALMOST_ONE])
def test_a_token_of_no_probability_is_never_drawn(uniform):
    """Two tokens alone are possible, wherever they are; the others are before, between and after them."""
    generator, vocabulary, rows = torch.Generator().manual_seed(0), 5 * BLOCK + 3, 2000
    likely = torch.randint(vocabulary, (rows, 2), generator=generator)
    logprobs = torch.full((rows, vocabulary), -math.inf).scatter(1, likely, torch.randn(rows, 2, generator=generator))
    drawn = draw(logprobs.log_softmax(-1), torch.full((rows,), uniform))
    assert (drawn[:, None] == likely).any(1).all()


def test_what_rounding_takes_off_a_block_is_the_last_tokens():
    """Points behind all tokens of a block, and before the float32 sum of it; its last tokens are impossible."""
    generator, rows = torch.Generator().manual_seed(1), 4000
    logprobs = torch.randn(rows, BLOCK + 1, generator=generator)
    logprobs[:, BLOCK // 2 : BLOCK] = -math.inf
    logprobs = logprobs.log_softmax(-1)
    probabilities = logprobs.exp()
    first = probabilities[:, :BLOCK].sum(-1).double()
    drawn = draw(logprobs, first / (first + probabilities[:, BLOCK]) - 1e-12)
    assert (drawn < BLOCK).any() and not (drawn[:, None] == torch.arange(BLOCK // 2, BLOCK)).any()
