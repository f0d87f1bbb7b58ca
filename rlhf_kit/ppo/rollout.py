"""Sampling: one KV-cached loop that stops each completion at its end token and drops it from the batch.

prompt (B, P), padded on the left             completion (B, R), padded on the right
[ .  .  p  p  p | c  c  c  EOS  . ]           completion_mask is True on c and EOS
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_kit import ops


@dataclass
class Rollout:
    """A batch of prompts with sampled completions."""

    prompt_ids: Tensor  # (B, P) int64, left-padded
    prompt_lengths: Tensor  # (B,)
    completion_ids: Tensor  # (B, R) int64, right-padded
    completion_lengths: Tensor  # (B,) chosen tokens, the end token included
    terminated: Tensor  # (B,) bool: the policy ended the completion itself; False = cut off at the limit

    @property
    def completion_mask(self) -> Tensor:  # (B, R)
        return ops.length_mask(self.completion_lengths, self.completion_ids.shape[1])

    def completions(self) -> list[list[int]]:
        """The chosen tokens of each row, the end token included."""
        rows = zip(self.completion_ids.tolist(), self.completion_lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]

    def select(self, rows: Tensor) -> Rollout:
        """Some rows, without the padding that only the others needed."""
        prompt_lengths, completion_lengths = self.prompt_lengths[rows], self.completion_lengths[rows]
        return Rollout(
            self.prompt_ids[rows, self.prompt_ids.shape[1] - int(prompt_lengths.max()) :],
            prompt_lengths,
            self.completion_ids[rows, : int(completion_lengths.max())],
            completion_lengths,
            self.terminated[rows],
        )

    def by_length(self, size: int) -> Iterator[Tensor]:
        """Row numbers, `size` at a time, rows of a like length together."""
        yield from (self.prompt_lengths + self.completion_lengths).argsort().split(size)

    def model_inputs(self) -> dict[str, Tensor]:
        """Prompt and completion side by side, mask and positions from their lengths. -> three of (B, P + R)."""
        prompt_mask = ops.length_mask(self.prompt_lengths, self.prompt_ids.shape[1]).flip(1)
        mask = torch.cat([prompt_mask, self.completion_mask], 1).long()
        return {
            "input_ids": torch.cat([self.prompt_ids, self.completion_ids], 1),
            "attention_mask": mask,
            "position_ids": ops.position_ids(mask),
        }


def left_pad(sequences: list[list[int]], pad_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Token lists -> ids (B, P) padded on the left, lengths (B,)."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + s for s in sequences], device=device)
    return ids, torch.tensor([len(s) for s in sequences], device=device)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    eos_ids: list[int],
    pad_id: int,
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Rollout:
    """Sample one completion a prompt from softmax(logits / temperature), the whole vocabulary, as PPO needs it.

    Args:
        prompts: B token lists. eos_ids: any of these ends a completion. pad_id: fills, and is never looked at.
        temperature: 0 picks the likeliest token each time.
        generator: on the CPU; the draw of a row depends on its place in `prompts` alone, not on `batch_size`.
        batch_size: completions sampled at once; None for all.
    """
    uniforms = torch.rand(len(prompts), max_completion_length, generator=generator)
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of a like length share a batch
    completions: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size or len(order)):
        rows = order[start : start + (batch_size or len(order))]
        written = _decode(model, [prompts[i] for i in rows], uniforms[rows].to(device), temperature, eos_ids, pad_id)
        for row, tokens in zip(rows, written, strict=True):
            completions[row] = tokens
    prompt_ids, prompt_lengths = left_pad(prompts, pad_id, device)
    width = max(map(len, completions))
    lengths = torch.tensor([len(c) for c in completions], device=device)
    completion_ids = torch.tensor([c + [pad_id] * (width - len(c)) for c in completions], device=device)
    terminated = torch.tensor([c[-1] in eos_ids for c in completions], device=device)
    return Rollout(prompt_ids, prompt_lengths, completion_ids, lengths, terminated)


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Inverse-CDF draw from softmax(logits / temperature). (B, V), (B,) in [0, 1) -> (B,); temperature 0 is argmax."""
    if temperature == 0:
        return logits.argmax(-1)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    cumulative = torch.softmax(logits.float() / temperature, -1).to(exact).cumsum(-1)  # (B, V)
    points = uniforms[:, None].to(exact) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    uniforms: Tensor,
    temperature: float,
    eos_ids: list[int],
    pad_id: int,
) -> list[list[int]]:
    """The KV-cached loop over one batch; a row leaves the batch when it ends. -> token lists, end token included.

    uniforms: (B, R) the random numbers of each row; R is the longest completion.
    """
    device = next(model.parameters()).device
    ids, lengths = left_pad(prompts, pad_id, device)
    mask = ops.length_mask(lengths, ids.shape[1]).flip(1).long()
    positions = ops.position_ids(mask)
    alive = torch.arange(len(prompts), device=device)  # rows of the batch still being written
    ends = torch.tensor(eos_ids, device=device)
    cache = DynamicCache(config=model.config)
    completions: list[list[int]] = [[] for _ in prompts]
    for step in range(uniforms.shape[1]):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = draw(output.logits[:, -1], uniforms[alive, step], temperature)  # (rows alive,)
        for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            completions[row].append(token)
        going = ~torch.isin(tokens, ends)
        if step == uniforms.shape[1] - 1 or not going.any():
            break
        if not going.all():
            keep = going.nonzero().squeeze(1)
            alive, tokens, mask, lengths = alive[keep], tokens[keep], mask[keep], lengths[keep]
            cache.batch_select_indices(keep)
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        positions = (lengths + step)[:, None]
    return completions
