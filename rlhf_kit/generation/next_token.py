"""What may come next: the likeliest whole characters with their probabilities, and what is left for all others.

A byte-level tokenizer may write a Chinese character or an emoji in two to four tokens. The first of them alone cannot
be shown, so such a candidate is continued until its characters are whole: its probability is the product along its
tokens. The search goes from the likeliest on (a longer candidate is never likelier than its beginning), so the
candidates found are the likeliest ones there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.generation.drawing import truncated
from rlhf_kit.generation.text import BROKEN, LONGEST_CHARACTER, pieces
from rlhf_kit.models.forward import context_length, taken
from rlhf_kit.models.room import Room
from rlhf_kit.options.bounds import number_faults

MOST_BRANCHES = 256  # more than there are first bytes: none of those left out could be among the likeliest
MOST_ROUNDS = 24  # of continuing beginnings of characters


@dataclass(frozen=True)
class Candidate:
    """`text` is shown (bytes that make no character: by the numbers of their tokens), `ids` go on the prompt; `ends`:
    the last of them is an end token, which nothing follows."""

    ids: list[int]
    text: str
    probability: float
    ends: bool = False


@dataclass(frozen=True)
class NextToken:
    """Candidates, the likeliest first; `rest`: the probability of all that are not shown; entropy in nats, of one
    token. The candidates and the rest sum to 1."""

    candidates: list[Candidate]
    rest: float
    entropy: float


@torch.no_grad()
def next_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    *,
    count: int = 10,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    end_ids: Sequence[int] = (),
) -> NextToken:
    """What may come after `ids`, as it is drawn at this temperature, top-k and top-p (each token of a candidate).

    Raises:
        UserError: for no tokens, more than the model reads, or settings out of range.
    """
    faults = number_faults("next_token", count=count, temperature=temperature, top_k=top_k, top_p=top_p)
    room = Room(context_length(model.config), 1, "the next token")
    if not ids:
        faults.append("there are no tokens to continue from")
    elif not room.holds(len(ids)):
        faults.append(f"the text {room.lacks(len(ids))}")
    if faults:
        raise UserError(f"{'; '.join(faults)}.")

    def read(beginnings: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Behind each, all of one length: the likeliest tokens, their probabilities, what all others have, and all."""
        rows = torch.tensor([[*ids, *tokens] for tokens in beginnings], device=next(model.parameters()).device)
        logits = model(input_ids=rows, **taken(model, use_cache=False)).logits[:, -1].double()
        probabilities = truncated(logits / temperature, top_k, top_p).softmax(-1)
        values, tokens = probabilities.topk(min(max(count, MOST_BRANCHES), probabilities.shape[-1]))
        return tokens, values, probabilities.scatter(1, tokens, 0.0).sum(-1), probabilities

    def name(tokens: list[int]) -> str | None:
        """What a candidate is shown as; None: it must be continued."""
        text = shown(tokenizer, ids, tokens)
        if not text.endswith(BROKEN) or tokens[-1] in end_ids:
            return text
        is_long = len(tokens) == LONGEST_CHARACTER or not room.holds(len(ids) + len(tokens))
        return text if is_long else None

    (tokens,), (values,), (others,), (probabilities,) = read([[]])
    found, rest = _likeliest(_branches([], 1.0, tokens, values), read, name, count)
    candidates = [Candidate(tokens, whole(text, tokens), p, tokens[-1] in end_ids) for p, tokens, text in found]
    entropy = torch.special.entr(probabilities).sum().item()
    return NextToken(candidates, math.fsum([others.item(), rest]), entropy)


def _branches(beginning: list[int], probability: float, tokens: Tensor, values: Tensor) -> list[tuple[float, list]]:
    """(probability, tokens) of what continues a beginning."""
    pairs = zip(values.tolist(), tokens.tolist(), strict=True)
    return [(probability * p, [*beginning, token]) for p, token in pairs if p > 0]


def _likeliest(
    waiting: list[tuple[float, list[int]]], read: Callable, name: Callable[[list[int]], str | None], count: int
) -> tuple[list[tuple[float, list[int], str]], float]:
    """The likeliest of what `waiting` begins, with their names, and the probability of all else."""
    found: list[tuple[float, list[int], str]] = []
    rest: list[float] = []
    for left in reversed(range(MOST_ROUNDS)):
        waiting.sort(reverse=True)
        first, waiting = waiting[:count], waiting[count:]
        unfinished: dict[int, list[tuple[float, list[int]]]] = {}
        for probability, tokens in first:
            text = name(tokens) or ("" if left else BROKEN)
            if len(found) == count or text and unfinished:  # a likelier one may turn out less likely, when it is whole
                waiting.append((probability, tokens))
            elif text:
                found.append((probability, tokens, text))
            else:
                unfinished.setdefault(len(tokens), []).append((probability, tokens))
        if not unfinished:
            break
        for each in unfinished.values():
            rows = zip(each, *read([tokens for _, tokens in each])[:3], strict=True)
            for (probability, beginning), tokens, values, others in rows:
                waiting += _branches(beginning, probability, tokens, values)
                rest.append(probability * others.item())
    return found, math.fsum([*rest, *(probability for probability, _ in waiting)])


def whole(text: str, tokens: Sequence[int]) -> str:
    """A text as it is, bytes that make no character by the numbers of their tokens."""
    return text if BROKEN not in text else "⟨" + " ".join(f"#{token}" for token in tokens) + "⟩"


def shown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tokens: Sequence[int]) -> str:
    """What `tokens` write behind `ids`; special tokens by name."""
    before = list(ids[-2 * LONGEST_CHARACTER :])
    written = pieces(tokenizer, [*before, *tokens])
    text, at = "", 0
    for piece, own in written:
        at += len(own)
        if at > len(before):
            text += piece
    return text
