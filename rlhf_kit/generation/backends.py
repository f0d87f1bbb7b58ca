"""What samples, behind one interface: prompts, a model with its weights as they are, a seed -> `Rollout`.

pool           `sampling.sample`: rows that end make room for others; log-probs, entropies and values as it goes
transformers   `generate`: transformers' own loop, batch by batch
vllm           `vllm.backend`: a server, which the trainer makes; what else samples then is the pool

A backend draws by the row's own numbers, so in float32 those that are here write the same tokens. It may leave out all
but tokens: PPO then reads log-probs and values by the forward that it trains with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from rlhf_kit.errors import UserError
from rlhf_kit.generation.contexts import asked_once
from rlhf_kit.generation.drawing import choose
from rlhf_kit.generation.reading import left_pad
from rlhf_kit.generation.sampling import Rollout, check, lengths_of, sample, uniforms_of
from rlhf_kit.models.forward import unwrapped
from rlhf_kit.models.preflight import agreed, alone, gap, tried


class Backend(Protocol):
    """As `sample` does, which says what the arguments mean."""

    def __call__(
        self, model: PreTrainedModel, prompts: list[list[int]], *, eos_ids: list[int], pad_id: int,
        max_completion_length: int, temperature: float = 1.0, generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None, batch_size: int | None = None, value_head: nn.Module | None = None,
        compact: bool | None = None,
    ) -> Rollout: ...  # fmt: skip


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    eos_ids: list[int],
    pad_id: int,
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    value_head: nn.Module | None = None,
    compact: bool | None = None,
) -> Rollout:
    """The tokens of `sample`, by transformers' `generate`.

    What the model's generation config sets (a penalty, suppressed tokens) is left out: it is another distribution.

    Args:
        value_head, compact: not read. There are no values, log-probs or entropies; and how rows are read is the
            model's own affair: a cache may be right here (Mamba's) that is not right in the pool.

    Raises:
        UserError: as `sample`; and for a model of which `generate` makes other logits than its forward on a text
            alone, with a cache and prompts padded on the left.
    """
    check(prompts, max_completion_length, temperature, batch_size)
    _refuse(model, _fault(unwrapped(model)))
    device = next(model.parameters()).device
    uniforms = uniforms_of(len(prompts), max_completion_length, generator, seeds).to(device)
    tokens = torch.full((len(prompts), max_completion_length), pad_id, device=device)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of a like length are read together
    for rows in torch.tensor(order, device=device).split(batch_size or len(prompts)):
        batch = [prompts[row] for row in rows.tolist()]
        config = GenerationConfig(
            max_new_tokens=max_completion_length, do_sample=False, pad_token_id=pad_id, eos_token_id=eos_ids or None
        )
        written = _written(unwrapped(model), batch, config, _Drawn(uniforms[rows], temperature))
        tokens[rows, : written.shape[1]] = written
    lengths, terminated = lengths_of(tokens, torch.tensor(eos_ids, dtype=torch.long, device=device))
    return Rollout(*left_pad(prompts, pad_id, device), tokens[:, : int(lengths.max())], lengths, terminated)


BACKENDS: dict[str, Backend] = {"pool": sample, "transformers": generate, "vllm": sample}


def check_backend(name: str, model: PreTrainedModel) -> None:
    """Raises UserError, on every process, for a model that the backend would refuse at its first prompt."""
    if BACKENDS[name] is generate:
        _refuse(model, agreed(lambda: _fault(unwrapped(model))))


def _refuse(model: PreTrainedModel, fault: str | None) -> None:
    if fault:
        raise UserError(
            f"{type(unwrapped(model)).__name__} cannot be sampled from by transformers' generate, with a cache and "
            f"prompts padded on the left: {fault}. What can: generation_backend='pool'."
        )


class _Drawn(LogitsProcessor):
    """Leaves the token that is drawn, so that greedy search takes it."""

    def __init__(self, uniforms: Tensor, temperature: float):
        self.uniforms, self.temperature = iter(uniforms.T), temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, _ = choose(scores, next(self.uniforms), self.temperature)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def _written(model: PreTrainedModel, prompts: list[list[int]], config: GenerationConfig, *processors: LogitsProcessor):
    """What `generate` returns behind prompts: tokens (B, R)."""
    ids, lengths = left_pad(prompts, config.pad_token_id, model.device)
    mask = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths[:, None]
    with _no_settings_of(model):
        written = model.generate(ids, config, attention_mask=mask.long(), logits_processor=[*processors])
    return written[:, ids.shape[1] :]


@contextmanager
def _no_settings_of(model: PreTrainedModel) -> Iterator[None]:
    """`generate` takes from the model's own settings whatever it is not told."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Kept(LogitsProcessor):
    """Keeps the logits, (B, V) a token."""

    def __init__(self):
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits.append(scores.clone())
        return scores


@asked_once
def _fault(model: PreTrainedModel) -> str | None:
    """What is wrong with `generate` where prompts of other lengths share a batch: tried on random tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [ids[:6], ids[6:]]

    def compare() -> float:
        kept = _Kept()
        config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
        written = _written(model, prompts, config, kept).tolist()
        texts = [prompt + row for prompt, row in zip(prompts, written, strict=True)]
        truth = [alone(model, text)[-4:-1] for text in texts]
        return gap([*torch.stack(kept.logits, 1)], truth)

    return tried(model, compare)
