"""Log-probs computed apart from the trainers: by the kit's rollout forward, one answer a row."""

import torch

from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.models.forward import copied
from rlhf_kit.models.value import completion_logprobs


@torch.no_grad()
def answer_logprobs(model, prompts, answers):
    """Log-probs (B, R) of the tokens of answers to prompts, token lists; 0 behind them."""
    width, long = max(map(len, prompts)), max(map(len, answers))
    rollout = Rollout(
        torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        torch.tensor([*map(len, prompts)]),
        torch.tensor([ids + [0] * (long - len(ids)) for ids in answers]),
        torch.tensor([*map(len, answers)]),
        torch.ones(len(answers), dtype=torch.bool),
    )
    return completion_logprobs(model, rollout.model_inputs())


def moved(model, seed=1):
    """A copy whose weights are a little others."""
    other = copied(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return other
