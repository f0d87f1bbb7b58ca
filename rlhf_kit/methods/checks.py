"""Before the first step: are the log-probs that TRL's head gives those of the model's plain forward of each text?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_kit import ops
from rlhf_kit.data.packing import IGNORED
from rlhf_kit.errors import UserError
from rlhf_kit.models import preflight


def check_logprobs(
    model: nn.Module,
    texts: Sequence[list[int]],
    left: bool = False,
    temperature: float = 1.0,
    head: nn.Module | None = None,
) -> None:
    """Raises UserError where `model`, with TRL's head, gives the tokens of padded rows other log-probs than `alone`.

    Args:
        left: pad on the left, as rows of prompts of several lengths are. head: what computes them in its place.
    """

    def compare() -> float:
        by_head = [head_logprobs(head or model, texts, left)]
        truth = [
            ops.token_logprobs(
                preflight.alone(model, text)[:-1], torch.tensor(text[1:], device=by_head[0].device), temperature
            )
            for text in texts
        ]
        return preflight.gap(by_head, [torch.cat(truth)])

    fault = preflight.agreed(lambda: preflight.tried(model, compare, "they are"))
    if fault:
        raise UserError(
            f"The log-probs that TRL computes of {type(preflight.unwrapped(model)).__name__} in rows with padding are "
            f"not those of its own forward: {fault}. Train it with PPO."
        )


def head_logprobs(model: nn.Module, texts: Sequence[list[int]], left: bool = False) -> Tensor:
    """Log-probs of all tokens but the first of each text, row after row, by TRL's head. -> (M,)."""
    width, device = max(map(len, texts)), next(model.parameters()).device
    input_ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width).long()
    for row, text in enumerate(texts):
        place = slice(width - len(text), None) if left else slice(len(text))
        input_ids[row, place], mask[row, place] = torch.tensor(text), 1
    input_ids, mask = input_ids.to(device), mask.to(device)
    labels = input_ids.masked_fill(mask == 0, IGNORED)
    labels[torch.arange(len(texts)), mask.argmax(1)] = IGNORED  # a first token is predicted by nothing
    output = model(input_ids=input_ids, attention_mask=mask, labels=labels, fused_lm_head=True, use_cache=False)
    return output.log_probs[labels[:, 1:] != IGNORED]
