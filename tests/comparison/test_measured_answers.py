"""Answers by one path: the KL by two plain forwards, the best of n, and what beats what."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.comparison.answers import Answers, Questions, differences, kl_to, scored_by, summarize, wins
from rlhf_kit.generation.sampling import sample
from rlhf_kit.ppo.rewards import Rewards

TEMPERATURE = 0.7


def test_the_kl_is_that_of_two_plain_forwards():
    """Rows of different lengths: what stands in their padding counts for nothing."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16, initializer_range=0.5)
    torch.manual_seed(0)
    policy, sft = (GPT2LMHeadModel(config).eval() for _ in range(2))
    prompts, options = [[1], [2, 3, 4], [5, 6]], {"temperature": TEMPERATURE, "max_completion_length": 6}
    rollout = sample(
        policy, prompts, eos_ids=list(range(4)), pad_id=0, generator=torch.Generator().manual_seed(0), **options
    )
    expected = []
    for prompt, completion in zip(prompts, rollout.completions(), strict=True):
        tokens = torch.tensor([prompt + completion])
        places = slice(len(prompt) - 1, -1)
        with torch.no_grad():
            ours, theirs = ((model(tokens).logits[0, places] / TEMPERATURE).log_softmax(-1) for model in (policy, sft))
        expected.append((ours - theirs).gather(1, torch.tensor(completion)[:, None]).sum().item())
    assert len(set(rollout.completion_lengths.tolist())) > 1
    assert kl_to(sft, rollout, TEMPERATURE).tolist() == pytest.approx(expected, abs=1e-5)


def count_letters(prompts, completions, **columns) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def questions(policy, tokenizer):
    rewards = Rewards(count_letters, None, None, tokenizer, 4)
    prompts = ["hello ", "the cat ", "a"]
    return Questions(prompts, tokenizer, policy, rewards, scored_by(rewards), 1.0, 6)


def test_of_n_that_are_drawn_the_best_scored_is_the_answer(questions, policy):
    answers = questions.answers(policy, seed=3, n=4)
    prompts = [prompt for prompt in questions.prompts for _ in range(4)]
    every = Questions(prompts, questions.tokenizer, policy, questions.rewards, questions.judge, 1.0, 6)
    drawn = every.answers(policy, seed=3)
    best = [max(drawn.scores[at : at + 4]) for at in range(0, 12, 4)]
    assert answers.scores == best == answers.truth == [float(len(text)) for text in answers.texts]
    assert answers.kl == pytest.approx([math.log(4) - 3 / 4] * 3) and answers.entropy is None
    assert drawn.kl == [0.0] * 12 and all(entropy > 0 for entropy in drawn.entropy)


def test_every_policy_has_the_same_draws(questions, policy):
    one, other = (questions.answers(policy, seed=seed) for seed in (1, 1))
    assert one == other and one.texts != questions.answers(policy, seed=2).texts
    assert one.correct is None and all(0 < length <= 6 for length in one.length)


def test_a_tie_is_half_a_win_and_means_are_of_prompts():
    def answers(truth):
        return Answers(["a"] * 3, truth, [1.0, 0.0, 1.0], [1.0, 2.0, 3.0], [0.5, 0.0, 1.0], [1.0] * 3, [2] * 3)

    policy, sft = answers([1.0, 0.0, 0.5]), answers([0.5, 0.5, 0.5])
    assert wins(policy, sft) == [1.0, 0.0, 0.5]
    assert summarize(policy, sft) == {
        "truth": 0.5, "correct": 2 / 3, "reward_model_score": 2.0, "kl": 0.5, "win_rate_vs_sft": 0.5,
    }  # fmt: skip
    assert differences(policy, policy, 0) == dict.fromkeys(("truth", "correct", "reward_model_score"), (0.0, 0.0))
