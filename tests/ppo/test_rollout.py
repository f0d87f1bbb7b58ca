"""Sampling: the same tokens as transformers' generate, whatever the padding, batch or neighbours."""

import torch

from rlhf_kit import ops
from rlhf_kit.ppo.rollout import Rollout, draw, sample

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [40, 41, 42], [5, 5]]


def by_hand() -> Rollout:
    return Rollout(
        prompt_ids=torch.tensor([[0, 7], [8, 9]]),
        prompt_lengths=torch.tensor([1, 2]),
        completion_ids=torch.tensor([[3, 4], [5, 0]]),
        completion_lengths=torch.tensor([2, 1]),
        terminated=torch.tensor([False, True]),
    )


def greedy(policy, prompts, eos_ids=(), **options):
    return sample(
        policy, prompts, eos_ids=list(eos_ids), pad_id=0, max_completion_length=8, temperature=0, **options
    ).completions()


def test_greedy_equals_generate_row_by_row(policy):
    for prompt, completion in zip(PROMPTS, greedy(policy, PROMPTS), strict=True):
        expected = policy.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert completion == expected[0, len(prompt) :].tolist()


def test_a_row_stops_at_its_end_token_and_the_others_go_on(policy):
    free = greedy(policy, PROMPTS)
    end = free[0][2]
    for before, after in zip(free, greedy(policy, PROMPTS, eos_ids=[end]), strict=True):
        stop = before.index(end) + 1 if end in before else 8
        assert after == before[:stop]


def test_terminated_is_about_the_last_token_only(policy):
    end = greedy(policy, PROMPTS)[0][2]
    rollout = sample(policy, PROMPTS, eos_ids=[end], pad_id=end, max_completion_length=8, temperature=0)
    assert rollout.terminated.tolist() == [row[-1] == end for row in rollout.completions()]
    assert rollout.terminated[0] and not rollout.terminated.all()
    # Padding with the end token's own id changes nothing: masks come from lengths.
    assert rollout.completion_mask.sum(1).tolist() == rollout.completion_lengths.tolist()
    assert rollout.completions() == greedy(policy, PROMPTS, eos_ids=[end])


def test_draws_do_not_depend_on_the_batch_size(policy):
    def run(batch_size):
        generator = torch.Generator().manual_seed(4)
        return sample(
            policy,
            PROMPTS,
            eos_ids=[0],
            pad_id=0,
            max_completion_length=8,
            generator=generator,
            batch_size=batch_size,
        ).completions()

    assert run(None) == run(1) == run(3)


def test_draw_follows_the_distribution():
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    uniforms = torch.linspace(0, 1, 20001)[:-1]
    drawn = draw((logits / 0.5).log_softmax(-1).expand(len(uniforms), -1), uniforms)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.softmax(logits[0] / 0.5, -1), atol=2e-4, rtol=0)


def test_model_inputs_by_hand():
    inputs = by_hand().model_inputs()
    assert inputs["input_ids"].tolist() == [[0, 7, 3, 4], [8, 9, 5, 0]]
    assert inputs["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert inputs["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 0]]


def test_selected_rows_lose_the_padding_of_the_others():
    rollout = by_hand()
    assert rollout.select(torch.tensor([0])).model_inputs()["input_ids"].tolist() == [[7, 3, 4]]
    assert rollout.select(torch.tensor([1])).model_inputs()["input_ids"].tolist() == [[8, 9, 5]]
    assert torch.cat(list(rollout.by_length(1))).sort().values.tolist() == [0, 1]


def test_sampling_and_scoring_use_the_same_distribution(policy):
    """Many draws of one token against the log-probs the trainer gives it, at a temperature other than 1."""
    generator = torch.Generator().manual_seed(0)
    rollout = sample(
        policy,
        [[5, 6, 7]] * 4000,
        eos_ids=[],
        pad_id=0,
        max_completion_length=1,
        temperature=0.6,
        generator=generator,
    )
    tokens, counts = rollout.completion_ids[:, 0].unique(return_counts=True)
    logits = policy(torch.tensor([[5, 6, 7]])).logits[0, -1]
    probabilities = ops.token_logprobs(logits.expand(len(tokens), -1), tokens, 0.6).exp()
    torch.testing.assert_close(counts / 4000, probabilities.detach(), atol=0.03, rtol=0)
