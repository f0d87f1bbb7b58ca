"""Best-of-n: the curve by hand and by brute force, and a tiny model from prompts to the best completion."""

import itertools
import math

import pytest
import torch

from rlhf_kit.data.chat import decode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.models.heads import score_texts
from rlhf_kit.ppo.best_of_n import best_of_n, best_of_n_kl, expected_best_of_m
from rlhf_kit.ppo.rewards import Rewards

PROMPTS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "user", "content": "the cat sat on the mat"}],
    "and the dog",
]


def length(completions, **columns) -> list[float]:
    """A score that no two different lengths share."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [-float(len(text)) for text in texts]


# --- The mathematics ---------------------------------------------------------------------------------------------


def test_curve_of_three_by_hand():
    # best of 1: (1 + 2 + 6) / 3 = 3; of 2: the pairs (1,2), (1,6), (2,6): (2 + 6 + 6) / 3 = 14 / 3; of 3: 6
    expected = torch.tensor([[3.0, 14 / 3, 6.0]], dtype=torch.float64)
    torch.testing.assert_close(expected_best_of_m(torch.tensor([[2.0, 6.0, 1.0]])), expected)


def test_held_out_curve_of_three_by_hand():
    # The score orders 1 < 2 < 6; their held-out scores are 30, 9, 0.
    # best of 1: 39 / 3 = 13; of 2: the pairs choose 9, 0, 0: 9 / 3 = 3; of 3: 0
    scores, heldout = torch.tensor([[2.0, 6.0, 1.0]]), torch.tensor([[9.0, 0.0, 30.0]])
    expected = torch.tensor([[13.0, 3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(expected_best_of_m(scores, heldout), expected)


def brute_force(scores: list[float], values: list[float]) -> list[float]:
    """The mean over all subsets of m of the value of the best; equal bests share."""
    curve = []
    for m in range(1, len(scores) + 1):
        chosen = []
        for subset in itertools.combinations(range(len(scores)), m):
            top = max(scores[i] for i in subset)
            worth = [values[i] for i in subset if scores[i] == top]
            chosen.append(sum(worth) / len(worth))
        curve.append(sum(chosen) / len(chosen))
    return curve


@pytest.mark.parametrize(
    "scores",
    [[0.3, -1.2, 4.0, 2.5, 0.9], [1.0, 2.0, 2.0, 1.0, 2.0], [5.0] * 5, [0.0, 0.0, 1.0, -1.0, 0.0]],
    ids=["different", "ties", "equal", "zeros"],
)
def test_curve_of_five_is_the_mean_over_all_subsets(scores):
    values = [7.0, -2.0, 0.5, 3.0, 10.0]
    for given, worth in ((None, scores), (torch.tensor([values]), values)):
        curve = expected_best_of_m(torch.tensor([scores]), given)
        expected = torch.tensor([brute_force(scores, worth)], dtype=torch.float64)
        torch.testing.assert_close(curve, expected, rtol=1e-6, atol=1e-6)


def test_curve_rises_from_the_mean_to_the_best_whatever_the_order():
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    curve = expected_best_of_m(scores)
    assert (curve.diff(dim=1) > 0).all()
    torch.testing.assert_close(curve[:, 0], scores.double().mean(1))
    torch.testing.assert_close(curve[:, -1], scores.double().max(1).values)
    torch.testing.assert_close(expected_best_of_m(scores.flip(1)), curve)


def test_curve_is_unbiased():
    """The mean over many pools of 8 meets the expected best of m uniform numbers, m / (m + 1)."""
    curve = expected_best_of_m(torch.rand(20000, 8, generator=torch.Generator().manual_seed(0))).mean(0)
    m = torch.arange(1, 9, dtype=torch.float64)
    torch.testing.assert_close(curve, m / (m + 1), atol=5e-3, rtol=0)


def test_curve_of_a_large_pool_is_finite():
    curve = expected_best_of_m(torch.arange(3000.0)[None])
    assert curve.isfinite().all() and curve[0, -1] == 2999
    assert float(curve[0, 0]) == pytest.approx(1499.5)
    assert float(curve[0, 1]) == pytest.approx(sum(i * i for i in range(3000)) / math.comb(3000, 2))


def test_kl_by_hand():
    expected = [0.0, math.log(2) - 1 / 2, math.log(3) - 2 / 3, math.log(4) - 3 / 4]
    torch.testing.assert_close(best_of_n_kl(4), torch.tensor(expected, dtype=torch.float64))


def test_kl_is_that_of_the_best_of_m_distribution():
    """V equally likely completions of different scores: P(best = i-th) = (i^m - (i-1)^m) / V^m, for V large."""
    size, m = 20000, 5
    i = torch.arange(1, size + 1, dtype=torch.float64) / size
    best = i**m - (i - 1 / size) ** m
    torch.testing.assert_close((best * (best * size).log()).sum(), best_of_n_kl(m)[-1], atol=1e-3, rtol=0)


# --- From prompts to the best completion -------------------------------------------------------------------------


@pytest.fixture
def run(policy, tokenizer):
    def call(reward_funcs=length, n=4, prompts=PROMPTS, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        settings = {"max_completion_length": 8, "generator": generator} | options
        return best_of_n(policy, tokenizer, prompts, reward_funcs, n, **settings)

    return call


def test_best_is_the_argmax_and_the_ends_of_the_curve_are_mean_and_maximum(run):
    result = run()
    assert result.scores.shape == result.terminated.shape == (3, 4)
    assert [len(pool) for pool in result.completions] == [4, 4, 4]
    for pool, scores, best in zip(result.completions, result.scores.tolist(), result.best, strict=True):
        assert scores == length(pool)
        assert best == pool[scores.index(max(scores))]
        assert len(set(pool)) > 1  # n draws, not one
    assert float(result.curve[0]) == pytest.approx(float(result.scores.mean()))
    assert float(result.curve[-1]) == pytest.approx(float(result.scores.max(1).values.mean()))
    assert [row["n"] for row in result.rows()] == [1, 2, 3, 4]
    assert result.rows()[1] == {"n": 2, "kl": float(result.kl[1]), "score": float(result.curve[1])}


def test_each_pool_answers_its_own_prompt(run, policy, tokenizer):
    result = run(temperature=1e-4, n=2)  # so cold that the likeliest token is drawn
    for prompt, pool in zip(PROMPTS, result.completions, strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        likeliest = policy.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert pool == [decode_completion(tokenizer, likeliest.tolist())] * 2
    assert len({pool[0] for pool in result.completions}) == 3


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_a_generator_decides_the_draw_and_the_batch_size_does_not(run, reward_model, batch_size):
    plain, other = run(reward_model), run(reward_model, batch_size=batch_size)
    assert plain.completions == other.completions
    torch.testing.assert_close(plain.scores, other.scores, atol=1e-5, rtol=1e-5)
    assert run(reward_model, seed=1).completions != plain.completions


def test_a_reward_model_scores_the_text(run, reward_model, tokenizer):
    result = run(reward_model)
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    expected = score_texts(reward_model, tokenizer, prompts, sum(result.completions, []))
    torch.testing.assert_close(result.scores.flatten(), expected)


def test_a_function_is_called_once_with_columns_repeated(run):
    calls = []

    def look(prompts, completions, completion_ids, tag):
        calls.append((prompts, completions, completion_ids, tag))
        return [float(i) for i in range(len(prompts))]

    result = run(look, n=2, columns={"tag": ["a", "b", "c"]})
    (prompts, completions, ids, tag) = calls[0]
    assert len(calls) == 1
    assert tag == ["a", "a", "b", "b", "c", "c"] and prompts == [p for p in PROMPTS for _ in range(2)]
    assert [type(c) for c in completions] == [list] * 4 + [str] * 2 and all(ids)
    assert result.scores.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert result.best == [pool[1] for pool in result.completions]


def test_held_out_scores_choose_nothing(run):
    def opposite(completions, **columns):
        return [-score for score in length(completions)]

    plain, result = run(), run(heldout_funcs=opposite)
    assert result.best == plain.best and torch.equal(result.scores, plain.scores)
    assert plain.heldout_scores is plain.heldout_curve is None
    assert torch.equal(result.heldout_scores, -result.scores)
    torch.testing.assert_close(result.heldout_curve, -result.curve)
    assert result.rows()[-1]["heldout"] == float(result.heldout_curve[-1])


def test_weights_come_with_a_rewards_of_ones_own(run, tokenizer):
    rewards = Rewards([length, lambda prompts, **_: [1.0] * len(prompts)], None, [2.0, 10.0], tokenizer, 8)
    torch.testing.assert_close(run(rewards).scores, 2 * run().scores + 10)


def test_the_penalty_is_taken_off_a_completion_that_never_ended(run, policy):
    policy.generation_config.eos_token_id = list(range(0, 300, 2))  # half of all tokens
    plain, result = (run(n=8, max_completion_length=2, missing_eos_penalty=given) for given in (None, 7.0))
    assert result.terminated.any() and not result.terminated.all()
    assert torch.equal(result.scores, torch.where(result.terminated, plain.scores, plain.scores - 7))


def test_dropout_is_not_drawn_and_the_mode_comes_back(run, policy):
    plain = run()
    policy.train()  # GPT-2's dropout of 0.1
    assert run().completions == plain.completions
    assert policy.training and not any(p.grad is not None for p in policy.parameters())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"max_completion_length": 0}, "max_completion_length=0 must be at least 1"),
        (
            {"temperature": 0.0},
            r"temperature=0.0 must be above 0: the n completions of a prompt would all be the same",
        ),
        ({"prompts": []}, "prompts is empty"),
        ({"columns": {"tag": [1]}}, "the column 'tag' has 1 entries for 3 prompts"),
        ({"columns": {"prompts": [1, 2, 3]}}, "the column 'prompts' has the name of what a reward function gets"),
        ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"temperature": float("nan")}, "temperature=nan must be finite"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty=-1.0 must not be negative"),
        ({"n": 0, "temperature": -1.0}, "n=0 must be at least 1; temperature=-1.0 must be above 0"),
        ({"max_completion_length": 127}, r"row 2, has \d\d tokens; the context of 128 less 127 for .* leaves 1"),
        ({"prompts": ["hi", "word " * 200]}, r"row 2, has \d+ tokens; the context of 128 less 8 for .* leaves 120"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(run, options, message):
    with pytest.raises(UserError, match=message):
        run(**options)
