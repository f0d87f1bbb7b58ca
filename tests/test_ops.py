"""ops: values computed by hand, and properties that hold whatever the input."""

import math

import pytest
import torch
import torch.nn.functional as F

from rlhf_kit import ops


def test_position_ids_follow_the_mask_on_either_side():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert ops.position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]


def test_masked_mean_ignores_nan_outside_the_mask_and_shows_it_inside():
    x = torch.tensor([[1.0, 3.0, math.nan]])
    assert ops.masked_mean(x, torch.tensor([[True, True, False]])) == 2.0
    assert ops.masked_mean(x, torch.tensor([[True, True, True]])).isnan()
    assert ops.masked_mean(x, torch.zeros(1, 3, dtype=torch.bool)) == 0.0


def test_whiten_has_mean_0_and_population_variance_1():
    x = torch.tensor([[1.0, 2.0, 99.0], [3.0, 6.0, -99.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    # mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5
    expected = torch.tensor([[-2.0, -1.0], [0.0, 3.0]]) / math.sqrt(3.5)
    torch.testing.assert_close(ops.whiten(x, mask)[:, :2], expected)
    assert ops.whiten(x, mask)[:, 2].tolist() == [0.0, 0.0]


def test_whiten_over_processes_equals_whiten_of_all():
    x, mask = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.ones(6, 5, dtype=torch.bool)
    mask[4, 2:] = False
    whole = ops.whiten(x, mask)
    # What the other process contributes to each of the three sums, in the order they are asked for.
    rest_x, rest_mask = x[:2], mask[:2]
    mean = ops.masked_mean(x, mask)
    others = iter(
        [rest_mask.sum().float(), ops.masked_sum(rest_x, rest_mask), ops.masked_sum((rest_x - mean) ** 2, rest_mask)]
    )
    torch.testing.assert_close(ops.whiten(x[2:], mask[2:], lambda t: t + next(others)), whole[2:])


def test_token_logprobs_and_entropy_against_torch():
    logits = torch.randn(2, 3, 7)
    tokens = torch.tensor([[0, 6, 2], [1, 1, 5]])
    distribution = torch.distributions.Categorical(logits=logits / 0.7)
    torch.testing.assert_close(ops.token_logprobs(logits, tokens, 0.7), distribution.log_prob(tokens))
    torch.testing.assert_close(ops.entropy(logits, 0.7), distribution.entropy())


@pytest.mark.parametrize("size", [7, 300_000])  # in one part, and in several
def test_gradients_of_token_logprobs_are_those_of_log_softmax(size):
    ours = torch.randn(2, 3, size, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    tokens, weights = torch.randint(size, (2, 3)), torch.randn(2, 3)
    (ops.token_logprobs(ours, tokens, 0.7) * weights).sum().backward()
    expected = (theirs / 0.7).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ops.token_logprobs(ours, tokens, 0.7), expected)
    small = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    wanted = torch.distributions.Categorical(logits=small / 0.7).entropy()
    (gradient,) = torch.autograd.grad(ops.entropy(small, 0.7).sum(), small)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), small)[0], atol=1e-6, rtol=1e-4)


def test_token_logprobs_of_half_precision_logits_are_float32():
    logits, tokens = (torch.randn(2, 3, 500) * 5).bfloat16(), torch.zeros(2, 3, dtype=torch.long)
    logprobs, entropy = ops.token_logprobs(logits, tokens, 0.7), ops.entropy(logits, 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact = (logits.double() / 0.7).log_softmax(-1)
    torch.testing.assert_close(logprobs, exact[..., 0].float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(exact.exp() * exact).sum(-1).float(), atol=1e-5, rtol=1e-5)


def test_kl_estimators_are_unbiased_and_k3_is_never_negative():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum()
    for estimator in (ops.kl_k1, ops.kl_k3):
        torch.testing.assert_close((p * estimator(p.log(), q.log())).sum(), exact)
    assert (ops.kl_k3(p.log(), q.log()) >= 0).all()
    assert (ops.kl_k1(p.log(), q.log()) < 0).any()


def test_score_lands_on_the_last_chosen_token():
    mask = ops.length_mask(torch.tensor([3, 1]), 3)
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rewards = ops.token_rewards(torch.tensor([10.0, 20.0]), kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, -1.0, 8.5], [18.0, 0.0, 0.0]]
    rewards = ops.token_rewards(torch.tensor([10.0, 20.0]), kl, mask, kl_coef=0.5, bonus=-2.0 * kl)
    assert rewards.tolist() == [[-2.5, -5.0, 2.5], [10.0, 0.0, 0.0]]


def test_gae_by_hand():
    # gamma 0.5, lam 0.5; row 0 has two tokens and ends, row 1 has one and is cut off with V = 8 after it.
    mask = ops.length_mask(torch.tensor([2, 1]), 2)
    rewards = torch.tensor([[1.0, 2.0], [3.0, 77.0]])
    values = torch.tensor([[4.0, 2.0], [1.0, 55.0]])
    advantages, returns = ops.gae(rewards, values, mask, 0.5, 0.5, bootstrap=torch.tensor([0.0, 8.0]))
    # delta_1 = 2 + 0 - 2 = 0, delta_0 = 1 + 0.5 * 2 - 4 = -2; row 1: 3 + 0.5 * 8 - 1 = 6
    assert advantages.tolist() == [[-2.0, 0.0], [6.0, 0.0]]
    assert returns.tolist() == [[2.0, 2.0], [7.0, 0.0]]


def test_gae_with_lambda_1_is_the_discounted_return_minus_the_value():
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    lengths = torch.tensor([6, 4, 1, 3])
    advantages, returns = ops.gae(rewards, values, ops.length_mask(lengths, 6), 0.9, 1.0)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            expected = sum(0.9 ** (k - t) * rewards[row, k] for k in range(t, length))
            torch.testing.assert_close(returns[row, t], expected)
            torch.testing.assert_close(advantages[row, t], expected - values[row, t])


def test_gae_does_not_see_what_stands_after_the_end():
    mask = ops.length_mask(torch.tensor([2]), 4)
    rewards, values = torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.25, 0.0, 0.0]])
    noisy = rewards + torch.tensor([[0.0, 0.0, 9.0, math.nan]]), values + torch.tensor([[0.0, 0.0, 9.0, math.nan]])
    for clean, other in zip(ops.gae(rewards, values, mask, 0.9, 0.8), ops.gae(*noisy, mask, 0.9, 0.8), strict=True):
        assert torch.equal(clean, other)


def test_policy_loss_clips_by_hand():
    old = torch.zeros(1, 4)
    new = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    losses, ratio, clipped = ops.ppo_policy_loss(new, old, advantages, 0.2)
    # A gain stops at 1.2 (0.8 for a bad token made rarer); a loss is never cut.
    torch.testing.assert_close(losses, torch.tensor([[-1.2, 1.5, -0.5, 0.8]]))
    torch.testing.assert_close(ratio, torch.tensor([[1.5, 1.5, 0.5, 0.5]]))
    assert clipped.tolist() == [[True, False, False, True]]


def test_policy_loss_stays_finite_for_an_impossible_token():
    losses, _, _ = ops.ppo_policy_loss(torch.tensor([[500.0]]), torch.zeros(1, 1), torch.tensor([[-1.0]]), 0.2)
    assert losses.isfinite().all()


def test_value_loss_clips_by_hand():
    losses, clipped = ops.ppo_value_loss(
        torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), 0.2
    )
    # 0: plain 0, held at 0.2: 0.64 -> 0.32; 1: inside the range, 0.81 -> 0.405
    torch.testing.assert_close(losses, torch.tensor([[0.32, 0.405]]))
    assert clipped.tolist() == [[True, False]]


@pytest.fixture
def ranking():
    scores = torch.tensor([2.0, 1.0, 0.0, 5.0, 3.0], requires_grad=True)
    return scores, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 2, 2, 2, 1])


def test_pairwise_losses_by_hand(ranking):
    scores, groups, ranks = ranking
    # prompt 0: pairs (0,1), (0,2), the tie (1,2) dropped; prompt 1: the pair (4,3), ordered wrongly
    first = (-F.logsigmoid(torch.tensor(1.0)) - F.logsigmoid(torch.tensor(2.0))) / 2
    second = -F.logsigmoid(torch.tensor(-2.0))
    torch.testing.assert_close(ops.pairwise_losses(scores, groups, ranks), torch.stack([first, second]))


def test_a_margin_and_a_smoothed_label_by_hand():
    scores, groups, ranks = torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([1, 2])
    losses = ops.pairwise_losses(scores, groups, ranks, torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(losses, -F.logsigmoid(torch.tensor([0.75])))
    losses = ops.pairwise_losses(scores, groups, ranks, label_smoothing=0.1)
    torch.testing.assert_close(losses, torch.tensor([0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.exp(1))]))


def test_a_tied_pair_is_dropped_or_pulled_together(ranking):
    scores, groups, ranks = torch.tensor([1.0, 2.0]), torch.tensor([0, 0]), torch.tensor([1, 1])
    assert ops.pairwise_losses(scores, groups, ranks).tolist() == []
    half = ops.pairwise_losses(scores, groups, ranks, ties=True)
    torch.testing.assert_close(half, torch.tensor([(math.log1p(math.exp(1)) + math.log1p(math.exp(-1))) / 2]))
    # prompt 0 of the fixture: the tied pair (1, 2), one apart, is one of three
    mixed = ops.pairwise_losses(*ranking, ties=True)
    strict = ops.pairwise_losses(*ranking)
    torch.testing.assert_close(mixed, torch.stack([(strict[0] * 2 + half[0]) / 3, strict[1]]))


def test_plackett_luce_by_hand():
    scores, groups = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.zeros(4, dtype=torch.long)
    e = scores.exp()
    losses = ops.plackett_luce_losses(scores, groups, torch.tensor([2, 4, 1, 3]))
    chance = e[2] / e.sum() * e[0] / (e[0] + e[3] + e[1]) * e[3] / (e[3] + e[1])
    torch.testing.assert_close(losses, -chance.log()[None] / 3)
    # Efron: of the two best, the second is drawn where each of them counts half
    losses = ops.plackett_luce_losses(scores[:3], groups[:3], torch.tensor([1, 2, 1]))
    chance = e[0] / (e[0] + e[2] + e[1]) * e[2] / ((e[0] + e[2]) / 2 + e[1])
    torch.testing.assert_close(losses, -chance.log()[None] / 2)


def test_the_best_of_a_list_by_hand():
    scores, groups = torch.tensor([0.5, -1.0, 2.0]), torch.zeros(3, dtype=torch.long)
    logprobs = scores.log_softmax(0)
    torch.testing.assert_close(ops.best_of_losses(scores, groups, torch.tensor([2, 3, 1])), -logprobs[2:])
    two = ops.best_of_losses(scores, groups, torch.tensor([1, 2, 1]))
    torch.testing.assert_close(two, -(logprobs[0] + logprobs[2])[None] / 2)


@pytest.mark.parametrize("losses", [ops.plackett_luce_losses, ops.best_of_losses])
def test_of_two_answers_every_loss_is_the_pairwise_one(losses, ranking):
    scores, groups, ranks = torch.tensor([0.3, 1.5, 9.0, 7.5]), torch.tensor([1, 0, 0, 1]), torch.tensor([1, 2, 1, 2])
    torch.testing.assert_close(losses(scores, groups, ranks), ops.pairwise_losses(scores, groups, ranks))


def test_the_losses_of_a_list_have_finite_gradients_at_far_scores():
    for losses in (ops.pairwise_losses, ops.plackett_luce_losses, ops.best_of_losses):
        scores = torch.tensor([200.0, -200.0, 0.0, 200.0], requires_grad=True)
        total = losses(scores, torch.tensor([0, 0, 0, 0]), torch.tensor([3, 1, 2, 3])).sum()
        total.backward()
        assert total.isfinite() and scores.grad.isfinite().all() and scores.grad.abs().sum() > 0


def test_pair_accuracy_counts_an_equal_score_half(ranking):
    scores, groups, ranks = ranking
    accuracy, valid = ops.pair_accuracy(scores, groups, ranks)
    assert accuracy.tolist() == [1.0, 0.0] and valid.tolist() == [True, True]
    accuracy, _ = ops.pair_accuracy(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), torch.tensor([1, 2]))
    assert accuracy.tolist() == [0.5]


def test_thumbs_losses_are_binary_cross_entropies():
    scores = torch.tensor([2.0, -1.0])
    losses = ops.thumbs_losses(scores, torch.tensor([True, False]))
    torch.testing.assert_close(losses, -F.logsigmoid(torch.tensor([2.0, 1.0])))
    smoothed = ops.thumbs_losses(scores, torch.tensor([True, False]), label_smoothing=0.2)
    torch.testing.assert_close(
        smoothed, -0.8 * F.logsigmoid(torch.tensor([2.0, 1.0])) - 0.2 * F.logsigmoid(torch.tensor([-2.0, -1.0]))
    )
