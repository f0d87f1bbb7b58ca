"""What is told of a token, drawn or read: its log-prob, and with the likeliest others its rank and the entropy."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Drawn(NamedTuple):
    """A token. Log-probs (nats), rank and entropy are of the model itself: temperature 1, with nothing left out."""

    token: int
    logprob: float
    finish: str | None = None  # why it is the last one: an end token, which is `token`, or the limit
    top: list[tuple[int, float]] = []  # the likeliest tokens and their log-probs
    rank: int | None = None  # 1: no other was likelier
    entropy: float | None = None


class Told:
    """Tokens (N,) and what is told of each, by the logits (N, V) of their places.

    `most`: the most candidates that any row is told; 0 saves the time of more than the log-probs.
    """

    def __init__(self, logits: Tensor, tokens: Tensor, most: int):
        logits, chosen = logits.float(), tokens[:, None]
        totals = logits.logsumexp(-1, keepdim=True)
        self.tokens, self.logprobs = tokens.tolist(), (logits.gather(1, chosen) - totals).squeeze(1).tolist()
        if most:
            logprobs = logits - totals
            values, ids = logprobs.topk(min(most, logits.shape[-1]))
            self.values, self.ids = values.tolist(), ids.tolist()
            self.ranks = (1 + (logits > logits.gather(1, chosen)).sum(-1)).tolist()
            self.entropies = (-(logprobs.exp() * logprobs).sum(-1)).tolist()

    def of(self, row: int, count: int, finish: str | None = None) -> Drawn:
        """With the `count` likeliest; with any, its rank and the entropy too."""
        drawn = Drawn(self.tokens[row], self.logprobs[row], finish)
        if not count:
            return drawn
        top = list(zip(self.ids[row][:count], self.values[row][:count], strict=True))
        return drawn._replace(top=top, rank=self.ranks[row], entropy=self.entropies[row])
