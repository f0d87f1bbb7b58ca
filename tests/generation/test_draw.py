"""The draw in two levels: the tokens of one sum over the whole vocabulary."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TopKLogitsWarper, TopPLogitsWarper

from rlhf_kit.errors import UserError
from rlhf_kit.generation.drawing import BLOCK, choose, draw, truncated
from rlhf_kit.generation.sampling import sample

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


@pytest.mark.parametrize("vocabulary", [60, 2100])
def test_what_is_left_out_is_what_transformers_leaves_out(vocabulary):
    """In rows of any sharpness; of 2,100 tokens the likeliest 1,024 do not reach the top-p of a flat row."""
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.tensor([0.01, 0.5, 3.0, 9.0])[:, None]
    logits = torch.randn(4, vocabulary, generator=generator) * sharpness
    for top_k, top_p in [(1, None), (5, None), (None, 0.3), (None, 0.99), (7, 0.5), (0, 1.0), (10**6, 0.9)]:
        expected = logits
        if top_k:
            expected = TopKLogitsWarper(min(top_k, vocabulary))(None, expected)
        if top_p is not None and top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        assert torch.equal(truncated(logits, top_k, top_p), expected), (top_k, top_p)
        each = torch.full((4,), top_k or 0), torch.full((4,), 1.0 if top_p is None else top_p)
        assert torch.equal(truncated(logits, *each), expected), (top_k, top_p)


def test_each_row_has_settings_of_its_own():
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(5, 300, generator=generator), torch.rand(5, generator=generator)
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 3, 1.0), (1.3, 0, 0.4), (2.0, 50, 0.8)]
    columns = [torch.tensor(column) for column in zip(*settings, strict=True)]
    tokens, logprobs = choose(logits, uniforms, *columns)
    for row, own in enumerate(settings):
        token, alone = choose(logits[row : row + 1], uniforms[row : row + 1], *own)
        assert tokens[row] == token[0]
        torch.testing.assert_close(logprobs[row], alone[0])


def test_a_sampled_row_is_of_the_tokens_that_are_left():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32, vocab_size=60)).eval()
    options = {"eos_ids": [], "pad_id": 0, "max_completion_length": 8, "seeds": range(20)}
    rollout = sample(model, [[5]] * 20, top_k=3, **options)
    places = [[5, *ids[:-1]] for ids in rollout.completions()]
    with torch.no_grad():
        logits = model(torch.tensor(places)).logits
    likeliest = logits.topk(3).indices
    assert (likeliest == rollout.completion_ids[..., None]).any(-1).all()
    assert not (likeliest[..., 0] == rollout.completion_ids).all()
    own = (logits.gather(-1, likeliest)).log_softmax(-1)
    entropy = -(own.exp() * own).sum(-1)
    torch.testing.assert_close(rollout.entropy, entropy, atol=1e-5, rtol=1e-5)
    assert sample(model, [[5]], top_k=1, **options | {"seeds": [1]}).completions() == [
        sample(model, [[5]], temperature=0.0, **options | {"seeds": [1]}).completions()[0]
    ]
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UserError, match=f"sample: {next(iter(wrong))}"):
            sample(model, [[5]], **options | {"seeds": [1]} | wrong)
