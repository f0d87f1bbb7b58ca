"""Sampling by the token loop (`loop.py`): completions that have ended make room for others, and leave the batch.

It keeps a cache of what it read; a model that a cache or padding on the left would make wrong (`check_sampling`) reads
each row anew for every token.

It returns log-probs, entropies and values as it goes, and never holds the vocabulary for more than one place a row.

prompt (B, P), padded on the left             completion (B, R), padded on the right
[ .  .  p  p  p | c  c  c  EOS  . ]           completion_mask is True on c and EOS
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit import ops
from rlhf_kit.data.chat import decode_completion
from rlhf_kit.errors import UserError
from rlhf_kit.generation.attention import wide_attention
from rlhf_kit.generation.drawing import choose
from rlhf_kit.generation.loop import Begun, Step, write_on
from rlhf_kit.generation.reading import Anew, Cached, check_sampling, completion_rows, left_pad
from rlhf_kit.options.bounds import number_faults

LEAST = -1e4  # its exponential is 0 in float32
ENDED_SHARE = 1 / 8  # of the rows in a batch: so many leave it at once


@dataclass
class Rollout:
    """A batch of prompts with sampled completions."""

    prompt_ids: Tensor  # (B, P) int64, left-padded
    prompt_lengths: Tensor  # (B,)
    completion_ids: Tensor  # (B, R) int64, right-padded
    completion_lengths: Tensor  # (B,) chosen tokens, the end token included
    terminated: Tensor  # (B,) bool: the policy ended the completion itself; False = cut off at the limit
    # As the sampler computed them; None where a rollout was made by hand, or by a backend that does not tell.
    logprobs: Tensor | None = None  # (B, R) float32, at the temperature of the draw
    entropy: Tensor | None = None  # (B, R) float32
    values: Tensor | None = None  # (B, R) float32, V of the state before each token; only with a value head
    pack: bool = False  # whether models read all rows as one long one, without padding (`models.packed`)

    @property
    def completion_mask(self) -> Tensor:  # (B, R)
        return ops.length_mask(self.completion_lengths, self.completion_ids.shape[1])

    def completions(self) -> list[list[int]]:
        """The chosen tokens of each row, the end token included."""
        rows = zip(self.completion_ids.tolist(), self.completion_lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What the completions say, without the token that ended them."""
        rows = zip(self.completions(), self.terminated.tolist(), strict=True)
        return [decode_completion(tokenizer, ids[: len(ids) - ended]) for ids, ended in rows]

    def select(self, rows: Tensor) -> Rollout:
        """Some rows, without the padding that only the others needed."""
        prompt_lengths, completion_lengths = self.prompt_lengths[rows], self.completion_lengths[rows]
        width = int(completion_lengths.max())
        seen = (self.logprobs, self.entropy, self.values)
        return Rollout(
            self.prompt_ids[rows, self.prompt_ids.shape[1] - int(prompt_lengths.max()) :],
            prompt_lengths,
            self.completion_ids[rows, :width],
            completion_lengths,
            self.terminated[rows],
            *(None if x is None else x[rows, :width] for x in seen),
            pack=self.pack,
        )

    def by_length(self, size: int) -> Iterator[Tensor]:
        """Row numbers, `size` at a time, rows of a like length together."""
        yield from (self.prompt_lengths + self.completion_lengths).argsort().split(size)

    def model_inputs(self) -> dict[str, Tensor]:
        """`completion_rows` of prompts and completions, and `completion_ids` and `completion_mask`, (B, R) each."""
        rows = self.prompt_ids, self.prompt_lengths, self.completion_ids, self.completion_lengths
        tokens = {"completion_ids": self.completion_ids, "completion_mask": self.completion_mask}
        return completion_rows(*rows, pack=self.pack) | tokens


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    eos_ids: list[int],
    pad_id: int,
    max_completion_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    value_head: nn.Module | None = None,
    compact: bool | None = None,
) -> Rollout:
    """Sample one completion a prompt from softmax(logits / temperature): by default from the whole vocabulary, as PPO
    needs it.

    Args:
        prompts: B token lists. eos_ids: any of these ends a completion. pad_id: fills, and is never looked at.
        temperature: 0 picks the likeliest token each time (log-probs are then those of temperature 1).
        top_k, top_p: leave out unlikely tokens (`drawing.truncated`); log-probs are those of what is left.
        generator: on the CPU; the draw of a row depends on its place in `prompts` alone, not on `batch_size`. In bf16
            the logits do, by a rounding (`docs/custom-loop.md` says how many rows come out otherwise).
        seeds: one a row, in place of `generator`: its draws then depend neither on its place nor on
            `max_completion_length`, up to which a longer completion begins alike.
        batch_size: completions sampled at once; None for all. Others begin where some have ended; with sliding windows
            or recurrent states, which are read from the first token on, only where all have.
        value_head: reads the trunk's last hidden state; None: no values.
        compact: read each row anew for every token: slow, and right for any causal model. None: where it is needed.

    Raises:
        UserError: for no prompt, a prompt without tokens, a number out of range, or with `compact=None` a model that
            cannot be sampled from at all.
    """
    check(prompts, max_completion_length, temperature, batch_size, top_k, top_p)
    uniforms = uniforms_of(len(prompts), max_completion_length, generator, seeds)
    if compact is None:
        compact = check_sampling(model, prompts)
    device = next(model.parameters()).device
    ends = torch.tensor(eos_ids, dtype=torch.long, device=device)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of a like length are read together
    written = _Written(len(prompts), max_completion_length, pad_id, value_head is not None, device)
    with wide_attention(model):
        while waiting:
            rows = _taken(waiting, batch_size or len(waiting))
            reader = (Anew if compact else Cached)(model, [prompts[i] for i in rows], pad_id, max_completion_length)
            sampler = _Sampler(rows, uniforms.to(device), (temperature, top_k, top_p), ends, value_head, written)
            write_on(reader, _Pool(sampler, prompts, waiting if reader.refills else []))
    return written.rollout(*left_pad(prompts, pad_id, device), *lengths_of(written.tokens, ends))


def check(
    prompts: list[list[int]],
    max_completion_length: int,
    temperature: float,
    batch_size: int | None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Raises UserError for what cannot be sampled."""
    faults = number_faults(
        "sample", max_completion_length=max_completion_length, batch_size=batch_size, temperature=temperature,
        top_k=top_k, top_p=top_p,
    )  # fmt: skip
    empty = [number for number, ids in enumerate(prompts, start=1) if not len(ids)]
    if empty or not prompts:
        faults.append(
            f"the prompt of row {empty[0]} has no tokens to continue from" if empty else "there are no prompts"
        )
    if faults:
        raise UserError(f"sample: {'; '.join(faults)}.")


def uniforms_of(
    rows: int, max_completion_length: int, generator: torch.Generator | None, seeds: Sequence[int] | None
) -> Tensor:
    """The numbers by which each row is drawn, (B, R) in [0, 1). Raises UserError for seeds that do not fit."""
    if seeds is None:
        return torch.rand(rows, max_completion_length, generator=generator)
    if generator is not None or len(seeds) != rows:
        raise UserError(f"sample: {len(seeds)} seeds for {rows} prompts: give one each, and no generator.")
    own = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.rand(max_completion_length, generator=stream) for stream in own])


def lengths_of(tokens: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, R) up to the first that ends a row, and whether there is one. -> (B,), (B,)."""
    ended = torch.isin(tokens, ends)
    terminated = ended.any(1)
    return torch.where(terminated, ended.int().argmax(1) + 1, tokens.shape[1]), terminated


class _Written:
    """What is written so far, (B, R) each."""

    def __init__(self, size: int, width: int, pad_id: int, has_values: bool, device):
        self.pad_id = pad_id
        self.tokens = torch.full((size, width), pad_id, device=device)
        self.logprobs, self.entropy, values = torch.zeros(3, size, width, device=device)
        self.values = values if has_values else None

    def rollout(self, prompt_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor, terminated: Tensor) -> Rollout:
        width = int(lengths.max())
        mask = ops.length_mask(lengths, width)
        tokens = torch.where(mask, self.tokens[:, :width], self.pad_id)
        seen = (self.logprobs, self.entropy, self.values)
        seen = [None if x is None else torch.where(mask, x[:, :width], 0.0) for x in seen]
        return Rollout(prompt_ids, prompt_lengths, tokens, lengths, terminated, *seen)


class _Sampler:
    """Draws a token for each of the rows `rows` of `written`, and knows which have ended."""

    def __init__(
        self,
        rows: list[int],
        uniforms: Tensor,
        settings: tuple[float, int | None, float | None],  # of `choose`
        ends: Tensor,
        value_head: nn.Module | None,
        written: _Written,
    ):
        self.uniforms, self.settings, self.ends = uniforms, settings, ends
        self.value_head, self.written = value_head, written
        self.rows = torch.tensor(rows, device=ends.device)
        self.steps = torch.zeros_like(self.rows)  # tokens that are drawn of each
        self.going = torch.ones_like(self.rows, dtype=torch.bool)

    def draw(self, logits: Tensor, states: Tensor) -> Tensor:
        """The next tokens (M,), which are written down; those of rows that have ended are of no account."""
        rows, steps, written = self.rows, self.steps, self.written
        tokens, logprobs = choose(logits, self.uniforms[rows, steps], *self.settings)
        written.tokens[rows, steps] = tokens
        written.logprobs[rows, steps] = logprobs.gather(1, tokens[:, None]).squeeze(1)
        probabilities = logprobs.exp()  # of -inf, which a top-k leaves, times itself would be no number
        written.entropy[rows, steps] = -(probabilities * logprobs.clamp_(min=LEAST)).sum(-1)
        if self.value_head is not None:
            written.values[rows, steps] = self.value_head(states)
        self.steps = steps + 1
        self.going = self.going & ~torch.isin(tokens, self.ends) & (self.steps < self.uniforms.shape[1])
        return tokens

    def begin(self, places: Tensor, rows: list[int]) -> None:
        """Other rows in these places."""
        self.rows[places] = torch.tensor(rows, dtype=torch.long, device=self.rows.device)
        self.steps[places], self.going[places] = 0, True

    def keep(self, places: Tensor) -> None:
        """Go on with some alone."""
        self.rows, self.steps, self.going = self.rows[places], self.steps[places], self.going[places]


class _Pool:
    """Slots, as many as the sampler's first rows: when a share of them has ended, waiting rows take their places, or
    they leave the batch. Either copies what has been read."""

    def __init__(self, sampler: _Sampler, prompts: list[list[int]], waiting: list[int]):
        self.sampler, self.prompts, self.waiting = sampler, prompts, waiting
        # Which rows have ended is asked at every token on a CPU; a GPU would have to stop for it.
        self.every = 1 if sampler.ends.device.type == "cpu" else 8
        self.longest = sampler.uniforms.shape[1]
        self.left, self.asked = self.longest, 0

    def __call__(self, logits: Tensor, states: Tensor) -> Step | None:
        tokens, sampler = self.sampler.draw(logits, states), self.sampler
        self.left, self.asked = self.left - 1, self.asked + 1
        if self.left and self.asked % self.every:  # none is at its limit
            return Step(tokens)
        ended = (~sampler.going).nonzero().squeeze(1)
        if self.left and len(ended) < ENDED_SHARE * len(tokens):
            return Step(tokens)
        new = _taken(self.waiting, len(ended))
        begun, gone = ended[: len(new)], ended[len(new) :]
        if len(gone) == len(tokens):
            return None
        sampler.begin(begun, new)
        rows = None
        if len(gone):  # they stand behind those that begin, whose places stay
            rows = sampler.going.nonzero().squeeze(1)
            sampler.keep(rows)
            tokens = tokens[rows]
        self.left = self.longest - int(sampler.steps.max())
        return Step(tokens, rows, Begun(begun, [self.prompts[row] for row in new]) if new else None)


def _taken(waiting: list[int], count: int) -> list[int]:
    """The first `count`, which wait no more."""
    first, waiting[:count] = waiting[:count], []
    return first
