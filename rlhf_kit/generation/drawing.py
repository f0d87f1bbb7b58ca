"""How a next token is drawn from logits: temperature, top-k, top-p, and a number in [0, 1) that decides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # tokens of the vocabulary that `draw` sums up before it looks closer
LIKELIEST = 1024  # tokens among which a top-p is looked for first: all of a large vocabulary take long to sort


def choose(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The next tokens, and the log-probs they are drawn by. (B, V), (B,) in [0, 1) -> (B,), (B, V) float32.

    Args:
        temperature: of all rows, or of each (B,); 0 takes the likeliest token (log-probs are those of 1).
        top_k, top_p: as `truncated`, after the temperature; the log-probs of what is left out are -inf.
    """
    logits = logits.float()
    if not isinstance(temperature, Tensor):
        logprobs = torch.log_softmax(truncated(logits / (temperature or 1.0), top_k, top_p), -1)
        return draw(logprobs, uniforms) if temperature else logprobs.argmax(-1), logprobs
    is_greedy = temperature == 0
    scaled = logits / torch.where(is_greedy, 1.0, temperature)[:, None]
    logprobs = torch.log_softmax(truncated(scaled, top_k, top_p), -1)
    return torch.where(is_greedy, logits.argmax(-1), draw(logprobs, uniforms)), logprobs


def truncated(logits: Tensor, top_k: int | Tensor | None = None, top_p: float | Tensor | None = None) -> Tensor:
    """(B, V) with -inf for all but the `top_k` likeliest tokens, and of these all but the likeliest that together
    reach probability `top_p` (Holtzman et al. 2020, section 3.1). What ties with the last one kept is kept.

    Args:
        top_k, top_p: of all rows, or of each (B,); None, 0 and 1 leave nothing out.
    """
    vocabulary = logits.shape[-1]
    counts = None if top_k is None else _of_each(logits, top_k).long()
    if counts is not None:
        counts = torch.where(counts <= 0, vocabulary, counts).clamp(max=vocabulary)
    masses = None if top_p is None else _of_each(logits, top_p)
    if (counts is None or bool((counts == vocabulary).all())) and (masses is None or bool((masses >= 1).all())):
        return logits
    size = vocabulary
    if counts is not None:
        size = int(counts.max())
    elif vocabulary > LIKELIEST:
        size = LIKELIEST
    least = _least(logits, size, counts, masses)
    if least is None:
        least = _least(logits, vocabulary, counts, masses)
    return logits.masked_fill(logits < least, -torch.inf)


def _least(logits: Tensor, size: int, counts: Tensor | None, masses: Tensor | None) -> Tensor | None:
    """The least logit of each row that is kept, (B, 1); None: more than `size` tokens must be looked at."""
    ordered = logits.topk(size).values
    least = torch.full_like(ordered[:, :1], -torch.inf)
    whole = logits
    if counts is not None:
        least = torch.where(counts[:, None] < logits.shape[-1], ordered.gather(1, counts[:, None] - 1), least)
        ordered = ordered.masked_fill(ordered < least, -torch.inf)
        whole = ordered
    if masses is None:
        return least
    reached = (ordered - whole.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    wanted = torch.where(masses < 1, masses, 0.0)[:, None]  # 0: a row that asks for nothing
    if size < logits.shape[-1] and bool((reached[:, -1:] < wanted).any()) and whole is logits:
        return None
    place = (reached < wanted).sum(-1, keepdim=True).clamp(max=size - 1)
    return torch.where(masses[:, None] < 1, torch.maximum(least, ordered.gather(1, place)), least)


def _of_each(logits: Tensor, setting: float | Tensor) -> Tensor:
    return torch.as_tensor(setting, device=logits.device).expand(len(logits))


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw. (B, V) log-probs, (B,) in [0, 1) -> (B,).

    The point is looked for among the sums of blocks, then in one block: of the vocabulary, only that is summed up in
    float64. A token of probability 0 is never drawn.
    """
    vocabulary = logprobs.shape[-1]
    exact = torch.float32 if logprobs.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    blocks = F.pad(logprobs.exp(), (0, -vocabulary % BLOCK)).unflatten(-1, (-1, BLOCK))  # (B, V) -> (B, N, BLOCK)
    sums = F.pad(blocks.sum(-1).to(exact).cumsum(-1), (1, 0))  # (B, N + 1) before each block, and of all
    points = uniforms[:, None].to(exact) * sums[:, -1:]
    block = torch.searchsorted(sums[:, 1:].contiguous(), points, right=True).clamp(max=blocks.shape[1] - 1)
    cumulative = blocks.take_along_dim(block[:, :, None], 1).squeeze(1).to(exact).cumsum(-1)  # (B, BLOCK)
    place = torch.searchsorted(cumulative, points - sums.gather(1, block), right=True)
    # Summed one by one a block may be less than its sum by a rounding: a point beyond it is the last token's.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return (block * BLOCK + place.minimum(last)).squeeze(1).clamp(max=vocabulary - 1)
