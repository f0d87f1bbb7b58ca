"""Likelihoods of continuations: those of one plain row each, whatever shares a forward or a batch."""

import math
import random

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_kit.errors import UserError
from rlhf_kit.generation.likelihood import Likelihood, Request, likelihoods, windows


def model_of(kind, config):
    torch.manual_seed(0)
    size = dict(vocab_size=config.vocab_size, hidden_size=32)
    if kind == "llama":
        size |= dict(intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        model = LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=128))
    elif kind == "bloom":  # its attention looks at distances, so continuations cannot share a row
        model = BloomForCausalLM(BloomConfig(**size, n_layer=2, n_head=2))
    else:
        model = GPT2LMHeadModel._from_config(config, attn_implementation=kind)
    for parameter in model.parameters():  # or the distribution is flat
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    return model.eval()


@pytest.fixture
def requests(tokenizer):
    """Contexts of many lengths; one, several, equal continuations, and such as begin with one another."""
    draw = random.Random(3)

    def ids(count):
        return [draw.randrange(1, len(tokenizer)) for _ in range(count)]

    shared = ids(3)
    return [
        Request(ids(20), [ids(3), ids(1), ids(7), ids(2)]),
        Request(ids(1), [ids(2)]),
        Request(ids(33), [ids(1), ids(1), ids(1)]),
        Request(ids(7), [shared, [*shared, 5], [*shared, 6, 7], shared[:1]]),
        Request(ids(40), [shared, shared]),
        Request(ids(12), [ids(30)]),
        Request(ids(9), [ids(4), ids(4)]),
    ]


def alone(model, request):
    """(log-probabilities, greedy) of each continuation by a forward of its own, logits by logits."""
    found = []
    for ids in request.continuations:
        row = [*request.context, *ids]
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0].double()
        places = range(len(request.context) - 1, len(row) - 1)
        logprobs = torch.log_softmax(logits, -1)
        found.append(
            (
                [logprobs[at, row[at + 1]].item() for at in places],
                [logits[at].argmax().item() == row[at + 1] for at in places],
            )
        )
    return found


@pytest.mark.parametrize("kind", ["sdpa", "eager", "llama", "bloom"])
@pytest.mark.parametrize("max_batch_tokens", [1, 90, 8192])
def test_equals_a_forward_a_row(kind, max_batch_tokens, tiny_config, requests):
    model = model_of(kind, tiny_config)
    found = dict(likelihoods(model, requests, max_batch_tokens))
    assert sorted(found) == list(range(len(requests)))
    for number, request in enumerate(requests):
        for mine, (logprobs, greedy) in zip(found[number], alone(model, request), strict=True):
            assert mine.logprobs == pytest.approx(logprobs, abs=2e-4)
            assert mine.greedy == greedy


def test_the_greedy_continuation_matches_itself_and_no_other(policy, requests):
    context = requests[0].context
    ids = torch.tensor([context])
    written = policy.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    written = written[0, len(context) :].tolist()
    other = [*written[:-1], (written[-1] + 1) % policy.config.vocab_size]
    ((_, (same, changed)),) = likelihoods(policy, [Request(context, [written, other])])
    assert all(same.greedy) and len(same.greedy) == len(written)
    assert changed.greedy == [True] * (len(other) - 1) + [False]


def test_choices_share_one_forward_of_their_context(policy, monkeypatch):
    read = []
    forward = policy.forward

    def counted(*args, **kwargs):
        read.append(kwargs["input_ids"].numel() if "input_ids" in kwargs else args[0].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy, "forward", counted)
    request = Request(list(range(1, 51)), [[7, 8, 9], [8, 9], [9]])
    dict(likelihoods(policy, []))
    spent = len(read)  # what it takes to find out that this model can share
    dict(likelihoods(policy, [request]))
    assert spent and read[spent:] == [50 + 2 + 1]  # it is asked once; the last token of a choice is not read


def test_batches_are_bounded_and_hold_little_padding(policy, monkeypatch):
    sizes = []
    forward = policy.forward

    def counted(*args, **kwargs):
        if kwargs.get("use_cache") is False and "input_ids" in kwargs:
            sizes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy, "forward", counted)
    dict(likelihoods(policy, []))  # finds out how this model can be read
    alike = [Request([number] * 30, [[1]]) for number in range(7)]
    sizes.clear()
    dict(likelihoods(policy, alike, 90))
    assert sizes == [(3, 30), (3, 30), (1, 30)]
    sizes.clear()
    dict(likelihoods(policy, [*alike, Request([1] * 20, [[1]])], 8192))
    assert sizes == [(7, 30), (1, 20)]  # a third of the last row would be padding


def test_sums_and_means():
    found = Likelihood([-1.0, -2.5], [True, False])
    assert (found.total, found.per_token) == (-3.5, -1.75)


def test_what_the_model_cannot_read_is_refused(policy):
    fits = Request([1] * 120, [[2] * 9])  # 128 positions; the last token is not read
    assert len(dict(likelihoods(policy, [fits]))) == 1
    with pytest.raises(
        UserError, match="request 1 has 120 tokens; the context of 128 less 9 for its longest continuation leaves 119"
    ):
        dict(likelihoods(policy, [Request([1] * 120, [[2] * 10])]))


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 4, 2), (10, 4, 4), (5, 4, 1), (4, 4, 3), (2, 8, 8)])
def test_windows_score_every_token_once_within_what_is_read(length, window, stride):
    found = list(windows(length, window, stride))
    assert [at for _, start, end in found for at in range(start, end)] == list(range(1, length))
    assert all(begin < start < end and end - 1 - begin <= window for begin, start, end in found)
    assert all(end - 1 - begin == window for begin, _, end in found[1:])


def test_perplexity_of_a_stride_of_one_sees_all_it_can(policy):
    """Each token after the `window` before it: computed by hand."""
    ids = [random.Random(5).randrange(1, 200) for _ in range(20)]
    requests = [Request(ids[begin:start], [ids[start:end]]) for begin, start, end in windows(20, 8, 1)]
    mine = [x for _, (found,) in sorted(likelihoods(policy, requests)) for x in found.logprobs]
    for at in range(1, 20):
        with torch.no_grad():
            logits = policy(torch.tensor([ids[max(0, at - 8) : at]])).logits[0, -1]
        assert mine[at - 1] == pytest.approx(torch.log_softmax(logits, -1)[ids[at]].item(), abs=2e-4)
    assert math.isfinite(sum(mine))
