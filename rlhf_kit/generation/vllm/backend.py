"""Rollouts by a vLLM server, behind the interface of `generation.backends`: hand the policy over, prove it, sample.

The main process hands over and proves, and all stop where that fails; each then asks for its own rows. Every row is a
request with a seed of its own, so a run repeats as far as vLLM's own arithmetic does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_kit.errors import UserError
from rlhf_kit.generation.reading import left_pad
from rlhf_kit.generation.sampling import Rollout, check, uniforms_of
from rlhf_kit.generation.vllm.client import MOST_OPEN, PROCESSED, REFUSED, Server, VLLMError
from rlhf_kit.generation.vllm.probe import SAMPLING, Probe, tokens_of
from rlhf_kit.generation.vllm.weights import Weights
from rlhf_kit.models.preflight import agreed

NUMBERS = 2**24  # in [0, 1) that float32 draws


def check_server(url: str, timeout: float, vocabulary: int, longest: int, temperature: float) -> Server:
    """A server that can sample for a run, asked before any model is loaded.

    Args:
        vocabulary: of the policy. longest: tokens of its longest row, prompt and completion.
        temperature: of the run.

    Raises:
        UserError: for a server that is not there, or serves another vocabulary, a shorter context, or log-probs
            of another distribution.
    """
    server = Server(url, timeout)
    try:
        server.ask("GET", "/health")
        model, context = server.model()
        if context < longest:
            raise VLLMError(
                server.url,
                "a short context",
                f"It reads {context} tokens at once, the longest row of this run has {longest}. Serve with "
                f"--max-model-len {longest}, or lower max_completion_length or max_prompt_length.",
            )
        mode = server.logprobs_mode()
        if temperature != 1 and mode not in (None, PROCESSED):
            raise VLLMError(
                server.url,
                "raw log-probs",
                f"It tells {mode}, those of temperature 1, and the run's is {temperature:g}. Serve with "
                f"--logprobs-mode {PROCESSED}.",
            )
        _check_last_token(server, model, vocabulary - 1)
    except VLLMError as error:
        error.status = UserError.status  # nothing has begun
        raise
    return server


def _check_last_token(server: Server, model: str, token: int) -> None:
    """What it has beyond is not tried: a token that is none may end a server."""
    try:
        server.complete([{"model": model, "prompt": [token], "max_tokens": 1, "temperature": 1.0, "seed": 0}])
    except VLLMError as error:
        if error.fault != REFUSED:
            raise
        raise VLLMError(
            server.url,
            "another vocabulary",
            f"Its model {model!r} does not have the policy's last token, {token}: {error.parts[2]} Serve the model "
            "that the run starts from.",
        ) from None


class VLLMBackend:
    """`generation.backends.Backend` by a server. Made on every process.

    Args:
        server: of `check_server`. folder: which both see by this path. vocabulary, longest: as for `check_server`.
        temperature: of the run, at which the probe draws. bound: of `Probe`.
    """

    def __init__(
        self, server: Server, folder: str, *, vocabulary: int, longest: int, temperature: float, bound: float | None
    ):
        self.server = server
        self.probe = Probe(server, vocabulary, longest, temperature, bound)
        self.folder, self.vocabulary = folder, vocabulary
        self._weights: Weights | None = None  # of the main process
        self.gap = 0.0  # the largest of the last probe, nats

    def hand_over(self, policy: PreTrainedModel | PeftModel) -> str:
        """The server has the policy as it is, as the probe proves. -> its name there. Raises on every process."""

        def outcome() -> tuple[str, float] | Exception:
            try:
                if self._weights is None:
                    self._weights = Weights(self.server, self.folder)
                self._weights.hand_over(policy)
                gap = self.probe(self._weights.model, policy, self._weights.last_head)
                return self._weights.model, gap
            except Exception as error:  # of a disk too: the others wait for a word
                return error

        name_and_gap = agreed(outcome)
        if isinstance(name_and_gap, Exception):
            raise name_and_gap
        name, self.gap = name_and_gap
        return name

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
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
        """Completions of the server, with its log-probs at the temperature of the draw.

        Args:
            generator: numbers from which each row's seed is made, so the rows of a batch do not hang on one another.
            batch_size: requests under way at once.
            value_head, compact: not read; there are no values or entropies.
        """
        check(prompts, max_completion_length, temperature, batch_size)
        name = self.hand_over(model)
        if seeds is None:
            seeds = seeds_of(uniforms_of(len(prompts), max_completion_length, generator, None))
        requests = [
            {"model": name, "prompt": prompt, "max_tokens": max_completion_length, "temperature": temperature}
            | {"logprobs": 0, "stop_token_ids": list(eos_ids), "seed": int(seed)}
            | SAMPLING
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        choices = self.server.complete(requests, min(batch_size or MOST_OPEN, MOST_OPEN))
        rows = [self._row(choice, eos_ids, max_completion_length) for choice in choices]
        return _rollout(rows, prompts, set(eos_ids), pad_id, next(model.parameters()).device)

    def _row(self, choice: dict[str, Any], eos_ids: list[int], longest: int) -> tuple[list[int], list[float]]:
        """A completion as the policy would have written it. Raises VLLMError."""
        tokens, logprobs = tokens_of(self.server, choice)
        ends = [token in eos_ids for token in tokens]
        is_whole = ends[-1] or len(tokens) == longest
        if not is_whole or any(ends[:-1]) or not all(0 <= token < self.vocabulary for token in tokens):
            raise VLLMError(
                self.server.url,
                "a broken completion",
                f"It has {len(tokens)} tokens of at most {longest} and ended for the reason "
                f"{choice.get('finish_reason')!r}, with an end token in {sum(ends)} places. Does its model's "
                "generation_config.json stop at other tokens, or does another client pause it? Serve with "
                "--generation-config vllm.",
            )
        return tokens, logprobs


def seeds_of(uniforms: Tensor) -> list[int]:
    """A seed of 48 bits a row, from its first and last number. (B, R) -> B."""
    ends = (uniforms[:, [0, -1]].double() * NUMBERS).long()
    return (ends[:, 0] * NUMBERS + ends[:, 1]).tolist()


def _rollout(
    rows: list[tuple[list[int], list[float]]], prompts: list[list[int]], ends: set[int], pad_id: int, device
) -> Rollout:
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id)
    logprobs = torch.zeros(ids.shape)
    for place, (tokens, told) in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        logprobs[place, : len(tokens)] = torch.tensor(told)
    terminated = torch.tensor([tokens[-1] in ends for tokens, _ in rows])
    parts = (part.to(device) for part in (ids, lengths, terminated, logprobs))
    return Rollout(*left_pad(prompts, pad_id, device), *parts)
