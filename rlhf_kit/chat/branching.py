"""A text written token by token: what may come at a place, and what was written instead, or is written next."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from rlhf_kit.chat.speakers import Settings, Speaker
from rlhf_kit.errors import UserError
from rlhf_kit.generation.drawing import truncated
from rlhf_kit.generation.engine import STOP, Request
from rlhf_kit.generation.next_token import NextToken, next_token, shown, whole
from rlhf_kit.models.forward import taken


@dataclass(frozen=True)
class Piece:
    """Tokens that were chosen together, whole characters. `probability` and `ranks`, one a token, are the model's own;
    `shaped`: the probability by the temperature, top-k and top-p that were asked for."""

    ids: list[int]
    text: str
    probability: float
    ranks: list[int]
    shaped: float | None = None
    ends: bool = False


@dataclass(frozen=True)
class Look:
    """`prompt`: the text as the model reads it, its template with it. `next`: None behind an end."""

    prompt: str
    prompt_tokens: int
    path: list[Piece]
    next: NextToken | None


def prompt_ids(speaker: Speaker, text: str, in_turns: bool) -> list[int]:
    """A text to be continued, or one question in the chat template. A model without a template continues it."""
    return speaker.encode([{"role": "user", "content": text}] if in_turns else text)


def look(
    speaker: Speaker, text: str, in_turns: bool, path: Sequence[list[int]], at: int, count: int, settings: Settings
) -> Look:
    """What was written behind the prompt, and what may come behind its first `at` pieces. Raises UserError."""
    ids = prompt_ids(speaker, text, in_turns)
    written = [*ids, *(token for piece in path for token in piece)]
    before = [*ids, *(token for piece in path[:at] for token in piece)]
    if len(written) > len(ids):
        speaker.engine.check(Request(written, 1))
    options = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    pieces = speaker.engine.call(_read, speaker, ids, path, **options).result() if path else []
    if before[len(ids) :] and before[-1] in speaker.ends:
        coming = None
    else:
        coming = speaker.engine.call(
            next_token, speaker.tokenizer, before, count=count, end_ids=speaker.ends, **options
        ).result()
    return Look(shown(speaker.tokenizer, [], ids), len(ids), pieces, coming)


def write(
    speaker: Speaker, text: str, in_turns: bool, path: Sequence[list[int]], settings: Settings
) -> AsyncIterator[Piece]:
    """What is drawn behind the path, by the seed as `sample` draws it there, piece by piece. Raises UserError at once
    for what cannot be asked."""
    ids = [*prompt_ids(speaker, text, in_turns), *(token for piece in path for token in piece)]
    if path and ids[-1] in speaker.ends:
        raise UserError("Nothing follows the end of a text; go back to a place before it.")
    settings = speaker.fitted(replace(settings, top_logprobs=1), ids)
    speaker.engine.check(speaker.request(ids, settings))
    return _written(speaker, ids, settings)


async def _written(speaker: Speaker, ids: list[int], settings: Settings) -> AsyncIterator[Piece]:
    own: list[int] = []
    logprobs: list[float] = []
    ranks: list[int] = []
    async with aclosing(speaker.hear(ids, settings, chats=False)) as says:
        async for said in says:
            own.append(said.drawn.token)
            logprobs.append(said.drawn.logprob)
            ranks.append(said.drawn.rank or 0)
            if said.text or said.finish is not None:
                probability = math.exp(math.fsum(logprobs))
                yield Piece(own, _text(speaker, ids, own), probability, ranks, ends=said.finish == STOP)
                ids, own, logprobs, ranks = [*ids, *own], [], [], []


def _read(
    model: PreTrainedModel, speaker: Speaker, ids: list[int], path: Sequence[list[int]],
    temperature: float, top_k: int, top_p: float,
) -> list[Piece]:  # fmt: skip
    """The pieces behind a prompt, in one forward."""
    tokens = [token for piece in path for token in piece]
    row = torch.tensor([[*ids, *tokens]], device=next(model.parameters()).device)
    logits = model(input_ids=row[:, :-1], **taken(model, use_cache=False)).logits[0, len(ids) - 1 :].double()
    chosen = row[0, len(ids) :, None]
    logprobs = logits.log_softmax(-1).gather(1, chosen).squeeze(1).tolist()
    shaped = truncated(logits / temperature, top_k, top_p).softmax(-1).gather(1, chosen).squeeze(1).tolist()
    ranks = (1 + (logits > logits.gather(1, chosen)).sum(-1)).tolist()
    pieces, begin = [], 0
    for own in path:
        end = begin + len(own)
        text = _text(speaker, [*ids, *tokens[:begin]], own)
        probability = math.exp(math.fsum(logprobs[begin:end]))
        ends = own[-1] in speaker.ends
        pieces.append(Piece(list(own), text, probability, ranks[begin:end], math.prod(shaped[begin:end]), ends))
        begin = end
    return pieces


def _text(speaker: Speaker, before: list[int], own: list[int]) -> str:
    return whole(shown(speaker.tokenizer, before, own), own)
