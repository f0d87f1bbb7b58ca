"""ops and the KL controller: what must hold for any input, on inputs that hypothesis makes up.

`tests/test_ops.py` holds the arithmetic by hand; here stand the invariances. Float64 where the function keeps it, so
that tolerances are tight; what a mask leaves out is NaN, so that a leak shows.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_kit import ops
from rlhf_kit.ppo.experience import AdaptiveKL, FixedKL

# Derandomised: the same examples on every machine, so that a red run is red again.
check = settings(max_examples=50, deadline=None, derandomize=True)
TIGHT = {"rtol": 1e-9, "atol": 1e-9}  # float64
LOOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32

numbers = st.floats(-5, 5, allow_subnormal=False)
shares = st.one_of(st.just(1.0), st.just(0.0), st.floats(0, 1, allow_subnormal=False))


def tensors(*shape: int) -> st.SearchStrategy[torch.Tensor]:
    size = math.prod(shape)
    return st.lists(numbers, min_size=size, max_size=size).map(
        lambda values: torch.tensor(values, dtype=torch.float64).reshape(shape)
    )


@st.composite
def batches(draw, count: int = 1, shortest: int = 0):
    """lengths (B,), their mask (B, R) and `count` tensors (B, R) that are NaN where the mask is False."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = torch.tensor(draw(st.lists(st.integers(shortest, width), min_size=rows, max_size=rows)))
    mask = ops.length_mask(lengths, width)
    return lengths, mask, *(torch.where(mask, draw(tensors(rows, width)), math.nan) for _ in range(count))


# --- Masks and moments -------------------------------------------------------------------------------------------


@check
@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 3), st.booleans())
def test_a_mask_and_its_positions_follow_the_lengths(lengths, more, left):
    width = max(lengths) + more
    mask = ops.length_mask(torch.tensor(lengths), width)
    assert mask.sum(1).tolist() == lengths
    mask = mask.flip(1) if left else mask
    positions = ops.position_ids(mask)
    for row, length in enumerate(lengths):
        assert positions[row][mask[row]].tolist() == list(range(length))
        assert not positions[row][~mask[row]].any()


@check
@given(batches())
def test_masked_moments_are_those_of_the_kept_numbers(batch):
    _, mask, x = batch
    kept = x[mask].tolist()
    assert math.isclose(ops.masked_sum(x, mask), math.fsum(kept), abs_tol=1e-9)
    assert math.isclose(ops.masked_mean(x, mask), math.fsum(kept) / max(len(kept), 1), abs_tol=1e-9)
    for row, column in mask.nonzero()[:1].tolist():
        x[row, column] = math.nan  # in a kept place it must show
        assert ops.masked_sum(x, mask).isnan() and ops.masked_mean(x, mask).isnan()


def spread(x, mask) -> bool:
    """Whether the kept numbers differ enough for whitening's eps (1e-8) not to count."""
    return int(mask.sum()) > 1 and float(x[mask].var(unbiased=False)) > 1e-2


@check
@given(batches())
def test_whitened_numbers_have_mean_0_and_population_variance_1(batch):
    _, mask, x = batch
    assume(spread(x, mask))
    white = ops.whiten(x, mask)
    assert abs(white[mask].mean()) < 1e-6
    assert abs(white[mask].var(unbiased=False) - 1) < 1e-5
    assert not white[~mask].any()
    # Shifting and scaling only: the order stays.
    assert (white[mask][x[mask].argsort()].diff() >= 0).all()


@check
@given(batches(), st.floats(0.25, 4), st.floats(-10, 10))
def test_whitening_does_not_see_shift_and_positive_scale(batch, scale, shift):
    _, mask, x = batch
    assume(spread(x, mask))
    torch.testing.assert_close(ops.whiten(scale * x + shift, mask), ops.whiten(x, mask), rtol=1e-4, atol=1e-4)


@check
@given(batches(), st.sampled_from([0.0, 1e6, math.inf, math.nan]))
def test_whitening_ignores_what_is_masked(batch, garbage):
    _, mask, x = batch
    expected = ops.whiten(torch.where(mask, x, 0.0), mask)
    assert torch.equal(ops.whiten(torch.where(mask, x, garbage), mask), expected)


def whiten_over_processes(parts) -> list[torch.Tensor]:
    """`ops.whiten` on each part with what `accelerator.reduce` would give it.

    Each pass knows the totals of one more reduction, in whatever number and order the function asks for them.
    """
    totals: list[torch.Tensor] = []
    while True:
        asked, results = [], []
        for x, mask in parts:
            number = itertools.count()

            def reduce(part, number=number, asked=asked):
                at = next(number)
                if at == len(totals):
                    asked.append(part)
                return totals[at] if at < len(totals) else part

            results.append(ops.whiten(x, mask, reduce))
        if not asked:
            return results
        assert len(asked) == len(parts)
        totals.append(sum(asked))


@check
@given(batches(), st.integers(0, 4))
def test_whitening_over_processes_is_whitening_of_the_whole(batch, cut):
    _, mask, x = batch
    assume(spread(x, mask) and 0 < cut < len(x))
    parts = whiten_over_processes([(x[:cut], mask[:cut]), (x[cut:], mask[cut:])])
    torch.testing.assert_close(torch.cat(parts), ops.whiten(x, mask), rtol=1e-6, atol=1e-6)


# --- Distributions -----------------------------------------------------------------------------------------------


@st.composite
def categoricals(draw, count: int = 1):
    size = draw(st.integers(2, 6))
    return [draw(tensors(size)) for _ in range(count)]


@check
@given(categoricals(), st.floats(0.25, 4), st.floats(-20, 20))
def test_token_logprobs_are_a_distribution_that_sees_no_shift(logits, temperature, shift):
    logits = logits[0].expand(len(logits[0]), -1)
    every = torch.arange(logits.shape[-1])
    logprobs = ops.token_logprobs(logits, every, temperature)
    assert abs(logprobs.exp().sum() - 1) < 1e-5
    torch.testing.assert_close(ops.token_logprobs(logits + shift, every, temperature), logprobs, **LOOSE)
    torch.testing.assert_close(ops.token_logprobs(logits / temperature, every), logprobs, **LOOSE)


@check
@given(categoricals(), st.floats(0.25, 4))
def test_entropy_is_the_mean_surprise_between_0_and_log_v(logits, temperature):
    logits = logits[0]
    entropy = ops.entropy(logits, temperature)
    logprobs = ops.token_logprobs(logits.expand(len(logits), -1), torch.arange(len(logits)), temperature)
    torch.testing.assert_close(entropy, -(logprobs.exp() * logprobs).sum(), **LOOSE)
    assert -1e-5 < entropy < math.log(len(logits)) + 1e-5


@check
@given(categoricals(count=2))
def test_both_kl_estimators_have_the_exact_kl_as_their_mean(pair):
    logp, logq = (logits.log_softmax(-1) for logits in pair)
    exact = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (logp, logq)))
    for estimator in (ops.kl_k1, ops.kl_k3):
        torch.testing.assert_close((logp.exp() * estimator(logp, logq)).sum(), exact, **TIGHT)


@check
@given(tensors(6), tensors(6))
def test_k3_is_never_negative_and_k1_turns_with_its_arguments(logprobs, ref_logprobs):
    assert (ops.kl_k3(logprobs, ref_logprobs) >= 0).all()
    assert (ops.kl_k3(logprobs.float(), ref_logprobs.float()) >= 0).all()
    assert not ops.kl_k3(logprobs, logprobs).any()
    assert torch.equal(ops.kl_k1(logprobs, ref_logprobs), -ops.kl_k1(ref_logprobs, logprobs))


# --- Rewards, advantages -----------------------------------------------------------------------------------------


@check
@given(batches(), tensors(4), st.floats(0, 2))
def test_rewards_add_up_to_the_score_less_the_kl(batch, scores, kl_coef):
    lengths, mask, kl = batch
    scores = scores[: len(lengths)]
    rewards = ops.token_rewards(scores, kl, mask, kl_coef)
    expected = torch.where(lengths > 0, scores - kl_coef * torch.where(mask, kl, 0.0).sum(1), 0.0)
    torch.testing.assert_close(rewards.sum(1), expected, **TIGHT)


@check
@given(batches(), tensors(4), st.floats(0, 2))
def test_the_score_stands_on_the_last_chosen_token_alone(batch, scores, kl_coef):
    lengths, mask, kl = batch
    scores = scores[: len(lengths)]
    rewards = ops.token_rewards(scores, kl, mask, kl_coef)
    assert not rewards[~mask].any()
    for row, length in enumerate(lengths.tolist()):
        if length:
            torch.testing.assert_close(rewards[row, : length - 1], -kl_coef * kl[row, : length - 1], **TIGHT)
            last = scores[row] - kl_coef * kl[row, length - 1]
            torch.testing.assert_close(rewards[row, length - 1], last, **TIGHT)


def naive_gae(rewards, values, lengths, gamma, lam, bootstrap):
    """A_t = sum over k >= t of (gamma lam)^(k - t) delta_k, written out (Schulman et al. 2016, eq. 16)."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for row, length in enumerate(lengths.tolist()):
        state_values = [*values[row, :length].tolist(), float(bootstrap[row])]
        for t in range(length):
            total = 0.0
            for k in range(t, length):
                delta = float(rewards[row, k]) + gamma * state_values[k + 1] - state_values[k]
                total += (gamma * lam) ** (k - t) * delta
            advantages[row, t] = total
            returns[row, t] = total + state_values[t]
    return advantages, returns


@check
@given(batches(count=2), tensors(4), shares, shares)
def test_gae_is_the_sum_written_out(batch, bootstrap, gamma, lam):
    lengths, mask, rewards, values = batch
    bootstrap = bootstrap[: len(lengths)]
    expected = naive_gae(rewards, values, lengths, gamma, lam, bootstrap)
    for ours, theirs in zip(ops.gae(rewards, values, mask, gamma, lam, bootstrap), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TIGHT)
    for ours, theirs in zip(
        ops.gae(rewards, values, mask, gamma, lam),
        naive_gae(rewards, values, lengths, gamma, lam, torch.zeros(len(lengths))),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **TIGHT)


@check
@given(batches(count=2), tensors(4), shares, shares)
def test_gae_in_float32_is_close_to_gae_in_float64(batch, bootstrap, gamma, lam):
    lengths, mask, rewards, values = batch
    bootstrap = bootstrap[: len(lengths)]
    exact = ops.gae(rewards, values, mask, gamma, lam, bootstrap)
    single = ops.gae(rewards.float(), values.float(), mask, gamma, lam, bootstrap)
    for ours, theirs in zip(single, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, **LOOSE)


@check
@given(batches(count=2), tensors(4))
def test_gae_without_discount_returns_what_is_still_to_come(batch, bootstrap):
    lengths, mask, rewards, values = batch
    bootstrap = bootstrap[: len(lengths)]
    _, returns = ops.gae(rewards, values, mask, 1.0, 1.0, bootstrap)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            torch.testing.assert_close(returns[row, t], rewards[row, t:length].sum() + bootstrap[row], **TIGHT)
    assert not returns[~mask].any()


@check
@given(batches(count=2), tensors(4), shares, shares, st.integers(1, 4), st.sampled_from([0.0, 1e6, math.nan]))
def test_padding_on_the_right_changes_no_advantage(batch, bootstrap, gamma, lam, more, garbage):
    lengths, mask, rewards, values = batch
    bootstrap = bootstrap[: len(lengths)]
    wide = [F.pad(x, (0, more), value=garbage) for x in (rewards, values)]
    padded = ops.gae(*wide, F.pad(mask, (0, more), value=False), gamma, lam, bootstrap)
    for plain, other in zip(ops.gae(rewards, values, mask, gamma, lam, bootstrap), padded, strict=True):
        assert torch.equal(other[:, : mask.shape[1]], plain) and not other[:, mask.shape[1] :].any()


# --- Losses ------------------------------------------------------------------------------------------------------


@check
@given(
    tensors(3, 5),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
    tensors(3),
    st.floats(0.05, 0.5),
    st.floats(0.25, 4),
)
def test_at_ratio_1_the_policy_gradient_is_the_plain_one(logits, tokens, advantages, cliprange, temperature):
    logits, tokens = logits.float().requires_grad_(), torch.tensor(tokens)
    logprobs = ops.token_logprobs(logits, tokens, temperature)
    losses, ratio, clipped = ops.ppo_policy_loss(logprobs, logprobs.detach(), advantages.float(), cliprange)
    assert (ratio == 1).all() and not clipped.any()
    losses.sum().backward()
    # d log softmax(token) / d logits = onehot - p, and the logits are divided by the temperature
    slope = F.one_hot(tokens, 5) - (logits.detach() / temperature).softmax(-1)
    torch.testing.assert_close(logits.grad, (-advantages[:, None] * slope / temperature).float(), **LOOSE)


@check
@given(tensors(8), tensors(8), tensors(8), st.floats(0.05, 0.5))
def test_policy_loss_is_never_below_the_unclipped_one_and_counts_where_it_is_above(new, old, advantages, cliprange):
    new = (old + new / 4).requires_grad_()  # ratios of 0.3 to 3.5: inside and outside the range
    losses, ratio, clipped = ops.ppo_policy_loss(new, old, advantages, cliprange)
    torch.testing.assert_close(ratio, (new - old).exp(), **TIGHT)
    assert (losses >= -advantages * ratio).all()
    outside = ((advantages > 0) & (ratio > 1 + cliprange)) | ((advantages < 0) & (ratio < 1 - cliprange))
    held = 1 + cliprange * advantages.sign()
    torch.testing.assert_close(losses, -advantages * torch.where(outside, held, ratio), **TIGHT)
    clear = (advantages * (ratio - held)).abs() > 1e-9  # where rounding cannot decide
    assert torch.equal(clipped[clear], outside[clear])
    losses.sum().backward()
    assert not new.grad[outside & clear].any()  # what is clipped is not pushed further


@check
@given(st.floats(-1e4, 1e4), numbers)
def test_policy_loss_is_finite_for_any_log_ratio(log_ratio, advantage):
    new = torch.tensor([log_ratio], dtype=torch.float32, requires_grad=True)
    losses, ratio, _ = ops.ppo_policy_loss(new, torch.zeros(1), torch.tensor([advantage]), 0.2)
    losses.sum().backward()
    assert losses.isfinite().all() and new.grad.isfinite().all()
    torch.testing.assert_close(ratio.log(), new.detach().clamp(-20, 20), **LOOSE)


@check
@given(tensors(8), tensors(8), tensors(8), st.floats(0.05, 0.5), numbers)
def test_value_loss_is_never_below_the_plain_one(values, old_values, returns, cliprange, shift):
    values = old_values + values / 10  # inside and outside the range
    losses, clipped = ops.ppo_value_loss(values, old_values, returns, cliprange)
    plain = 0.5 * (values - returns) ** 2
    assert (losses >= plain).all()
    outside = (values - old_values).abs() > cliprange
    near = torch.where(outside, old_values + cliprange * (values - old_values).sign(), values)
    at_edge = 0.5 * (near - returns) ** 2
    torch.testing.assert_close(losses, torch.maximum(plain, at_edge), **TIGHT)
    clear = (at_edge - plain).abs() > 1e-9  # where rounding cannot decide
    assert torch.equal(clipped[clear], (at_edge > plain)[clear])
    moved, _ = ops.ppo_value_loss(values + shift, old_values + shift, returns + shift, cliprange)
    torch.testing.assert_close(moved, losses, **TIGHT)


@check
@given(tensors(6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_thumbs_losses_turn_with_score_and_label(scores, labels):
    labels = torch.tensor(labels)
    losses = ops.thumbs_losses(scores, labels)
    torch.testing.assert_close(ops.thumbs_losses(-scores, ~labels), losses, **LOOSE)
    signed = torch.where(labels, scores, -scores).tolist()
    torch.testing.assert_close(losses, torch.tensor([math.log1p(math.exp(-s)) for s in signed]), **LOOSE)


# --- The KL controller -------------------------------------------------------------------------------------------

coefs, targets, kls = st.floats(1e-3, 1), st.floats(0.1, 20), st.floats(-5, 100)


@check
@given(coefs, targets, kls, st.integers(1, 512), st.integers(1000, 20000))
def test_an_update_moves_the_coefficient_by_a_bounded_share_towards_the_target(coef, target, kl, count, horizon):
    controller = AdaptiveKL(coef, target, horizon)
    controller.update(kl, count)
    change = controller.coef / coef - 1
    bound = 0.2 * count / horizon
    assert abs(change) <= bound + 1e-12
    error = (kl - target) / target
    if abs(error) <= 0.2:
        assert math.isclose(change, error * count / horizon, abs_tol=1e-12)
    else:
        assert math.isclose(change, math.copysign(bound, error), rel_tol=1e-6, abs_tol=1e-12)


@check
@given(coefs, targets, st.integers(1, 512), st.integers(1000, 20000), st.integers(1, 5))
def test_at_the_target_the_coefficient_stays(coef, target, count, horizon, updates):
    controller = AdaptiveKL(coef, target, horizon)
    for _ in range(updates):
        controller.update(target, count)
    assert controller.coef == coef


@check
@given(coefs, st.lists(kls, max_size=5))
def test_a_fixed_coefficient_stays(coef, seen):
    controller = FixedKL(coef)
    for kl in seen:
        controller.update(kl, 256)
    assert controller.coef == coef


# --- Rankings ----------------------------------------------------------------------------------------------------


@st.composite
def rankings(draw):
    """scores (N,), groups (N,) in any order, ranks (N,) with ties, margins (N,)."""
    size = draw(st.integers(1, 8))
    groups = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    ranks = torch.tensor(draw(st.lists(st.integers(1, 3), min_size=size, max_size=size)))
    return draw(tensors(size)), groups, ranks, draw(tensors(size)).abs() / 5


def naive_pairwise_losses(scores, groups, ranks, margins) -> list[float]:
    """One mean of -log sigmoid a prompt, pair after pair."""
    losses = []
    for group in sorted(set(groups.tolist())):
        rows = [row for row in range(len(groups)) if groups[row] == group]
        pairs = [(i, j) for i in rows for j in rows if ranks[i] < ranks[j]]
        gaps = [float(scores[i] - scores[j] - margins[i]) for i, j in pairs]
        if gaps:
            losses.append(sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps))
    return losses


@check
@given(rankings())
def test_pairwise_losses_are_the_pairs_written_out(ranking):
    scores, groups, ranks, margins = ranking
    for given_margins, asked in ((margins, margins), (None, torch.zeros_like(margins))):
        losses = ops.pairwise_losses(scores, groups, ranks, given_margins)
        expected = torch.tensor(naive_pairwise_losses(scores, groups, ranks, asked))
        torch.testing.assert_close(losses, expected, **LOOSE)


@check
@given(rankings(), st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(ranking, random):
    order = list(range(len(ranking[0])))
    random.shuffle(order)
    scores, groups, ranks, margins = ranking
    mixed = [x[order] for x in ranking]
    torch.testing.assert_close(ops.pairwise_losses(*mixed), ops.pairwise_losses(*ranking), **LOOSE)
    for ours, theirs in zip(ops.pair_accuracy(*mixed[:3]), ops.pair_accuracy(scores, groups, ranks), strict=True):
        torch.testing.assert_close(ours, theirs, **LOOSE)


@check
@given(rankings(), tensors(3))
def test_a_shift_of_a_prompts_scores_changes_nothing(ranking, shift):
    scores, groups, ranks, margins = ranking
    moved = (scores + shift[groups]).requires_grad_()
    losses = ops.pairwise_losses(moved, groups, ranks, margins)
    torch.testing.assert_close(losses, ops.pairwise_losses(scores, groups, ranks, margins), **LOOSE)
    losses.sum().backward()
    by_prompt = torch.zeros(3, dtype=torch.float64).index_add(0, groups, moved.grad)
    torch.testing.assert_close(by_prompt, torch.zeros(3, dtype=torch.float64), **LOOSE)  # so no gradient pushes all up


@check
@given(rankings())
def test_accuracy_sees_the_order_of_the_scores_alone(ranking):
    scores, groups, ranks, _ = ranking
    scores = scores.round()  # equal scores, and gaps that no rounding closes
    accuracy, valid = ops.pair_accuracy(scores, groups, ranks)
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    stretched, _ = ops.pair_accuracy(scores**3 + 2 * scores, groups, ranks)
    torch.testing.assert_close(stretched, accuracy)
    turned, _ = ops.pair_accuracy(-scores, groups, ranks)
    torch.testing.assert_close(turned[valid], 1 - accuracy[valid])
    for group in valid.nonzero().flatten().tolist():
        mine = groups == group
        assert len(set(ranks[mine].tolist())) > 1
        perfect, _ = ops.pair_accuracy(-ranks[mine], groups[mine] * 0, ranks[mine])
        assert perfect.tolist() == [1.0]
