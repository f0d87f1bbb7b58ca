"""Proof after every hand-over that a server samples from the policy: log-probs of fixed texts, its and the trainer's.

written    a few tokens that the server draws behind each text, at the run's temperature, with the log-probs it tells:
           through its prefix cache, and as it processes logits
read       the log-probs of the tokens of each text itself, at temperature 1, which vLLM computes without its cache

`read` wrong: other weights. `read` right and `written` wrong: a stale cache, or another distribution.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_kit.generation.vllm.client import Server, VLLMError
from rlhf_kit.models.forward import captured_input, output_embeddings
from rlhf_kit.models.preflight import alone, computes_in_half

TEXTS, WRITTEN = 8, 8  # texts, and tokens that are drawn behind each
EXACT, ROUGH = 1e-4, 0.2  # bounds in float32, and in half precision
MOST_TEMPERATURE = 16.0  # up to which, and down to its inverse, the server's own is looked for
SAMPLING = {  # the whole softmax, whatever the model's generation_config.json says
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
}  # fmt: skip


def texts_of(vocabulary: int, longest: int) -> list[list[int]]:
    """Eight texts of random tokens, the last so long that it and what is written behind it are `longest`.

    As long as the run's own rows: a prefix is cached from a block of tokens on.
    """
    generator = torch.Generator().manual_seed(0)
    room = max(1, longest - WRITTEN)
    lengths = [max(2, room * (number + 1) // TEXTS) for number in range(TEXTS)]
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


@dataclass
class Readings:
    """What a server says of the texts."""

    read: list[Tensor]  # (T - 1,) log-probs of each text's tokens but the first
    tokens: list[list[int]]  # (W,) what it drew behind each
    written: list[Tensor]  # (W,) the log-probs it tells of them


class Probe:
    """Compares a server with the policy that it was handed.

    Args:
        bound: the largest difference of two log-probs, in nats, that rounding explains; None: by the precision in
            which the policy computes.
    """

    def __init__(self, server: Server, vocabulary: int, longest: int, temperature: float, bound: float | None):
        self.server, self.temperature, self.asked = server, temperature, bound
        self.bound = EXACT if bound is None else bound
        self.texts = texts_of(vocabulary, longest)
        self.last: list[Tensor] | None = None  # `read` of the policy that was handed over before

    def __call__(self, model: str, policy: nn.Module, last_head: Callable[[], Tensor | None]) -> float:
        """The largest difference. Raises VLLMError, with the likely cause as its fault, where it passes the bound.

        Args:
            model: as the server calls the policy. last_head: what the policy's tied head was before, to be looked at.
        """
        if self.asked is None:
            self.bound = ROUGH if computes_in_half(policy) else EXACT
        server = self.ask(model)
        logits = [alone(policy, [*text, *tokens])[:-1] for text, tokens in zip(self.texts, server.tokens, strict=True)]
        truth = [_read(rows, text) for rows, text in zip(logits, self.texts, strict=True)]
        gap = _gap(server.read, truth)
        if gap > self.bound:
            raise self._other_weights(gap, server, policy, last_head())
        behind = [rows[len(text) - 1 :] for rows, text in zip(logits, self.texts, strict=True)]
        written_gap = _gap(server.written, self._written(behind, server.tokens, self.temperature))
        if written_gap > self.bound:
            raise self._other_distribution(written_gap, model, server, behind, policy)
        self.last = truth
        return max(gap, written_gap)

    # --- what the server says ---------------------------------------------------------------------------------------

    def ask(self, model: str, **more: Any) -> Readings:
        """The readings of a server; drawn before read, since what is read may refresh a stale cache."""
        drawn = [
            {"model": model, "prompt": text, "max_tokens": WRITTEN, "temperature": self.temperature, "logprobs": 0}
            | SAMPLING | {"seed": seed} | more
            for seed, text in enumerate(self.texts)
        ]  # fmt: skip
        read = [
            {"model": model, "prompt": text, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "seed": 0}
            | SAMPLING
            for text in self.texts
        ]
        choices = self.server.complete(drawn)
        told = [tokens_of(self.server, choice) for choice in choices]
        return Readings(
            [self._prompt(text, answer) for text, answer in zip(self.texts, self.server.complete(read), strict=True)],
            [tokens for tokens, _ in told],
            [torch.tensor(logprobs) for _, logprobs in told],
        )

    def _prompt(self, text: list[int], choice: dict[str, Any]) -> Tensor:
        try:
            places = choice["prompt_logprobs"][1:]
            told = [place[str(token)]["logprob"] for token, place in zip(text[1:], places, strict=True)]
            return torch.tensor(told, dtype=torch.float32)
        except (KeyError, TypeError, ValueError, IndexError):
            raise self.server.foreign("POST /v1/completions", "`prompt_logprobs` of each token of a prompt") from None

    # --- what is wrong ----------------------------------------------------------------------------------------------

    def _other_weights(self, gap: float, server: Readings, policy: nn.Module, last_head: Tensor | None) -> VLLMError:
        if self.last is not None and _gap(server.read, self.last) <= self.bound:
            return self._fault(
                "old weights", gap, "They are those of the weights handed over before: it did not take the new ones."
            )
        if last_head is not None and _gap(server.read, self._with_head(policy, last_head)) <= self.bound:
            return self._fault(
                "old head",
                gap,
                "They are those of the new body under the old output embeddings: this vLLM leaves them out when it "
                "reads weights in place. Take another version.",
            )
        return self._fault(
            "other weights",
            gap,
            "It computes with other weights, or less exactly. Serve the model that the run starts from (under an "
            "adapter: its base), a float32 run with --dtype float32; what is rounding, vllm_probe_bound allows.",
        )

    def _other_distribution(
        self, gap: float, model: str, server: Readings, behind: list[Tensor], policy: nn.Module
    ) -> VLLMError:
        afresh = self.ask(model, cache_salt=secrets.token_hex(8))  # under which nothing is cached
        logits = [
            alone(policy, [*text, *tokens])[len(text) - 1 : -1]
            for text, tokens in zip(self.texts, afresh.tokens, strict=True)
        ]
        if _gap(afresh.written, self._written(logits, afresh.tokens, self.temperature)) <= self.bound:
            return self._fault(
                "stale cache",
                gap,
                "Where nothing is cached they are right: it keeps prefixes that it read with other weights. Is "
                "another client sampling? Serve with --no-enable-prefix-caching, or take another version.",
            )
        if _gap(server.written, self._written(behind, server.tokens, 1.0)) <= self.bound:
            return self._fault(
                "raw log-probs",
                gap,
                f"They are those of temperature 1, and the run's is {self.temperature:g}. Serve with "
                "--logprobs-mode processed_logprobs.",
            )
        near = self._nearest_temperature(server, behind)
        if _gap(server.written, self._written(behind, server.tokens, near)) <= self.bound:
            return self._fault(
                "wrong temperature",
                gap,
                f"They are those of temperature {near:.4g}, and the run's is {self.temperature:g}. Does something "
                "between the run and the server change requests?",
            )
        return self._fault(
            "another distribution",
            gap,
            "The weights are the policy's, what it draws from is not its softmax. Serve without logits processors, "
            "speculative decoding and a quantized cache.",
        )

    def _fault(self, fault: str, gap: float, why: str) -> VLLMError:
        return VLLMError(
            self.server.url,
            fault,
            f"Log-probs of {TEXTS} fixed texts differ from the trainer's by up to {gap:.2g} nats; {self.bound:g} is "
            f"the bound. {why}",
        )

    def _nearest_temperature(self, server: Readings, behind: list[Tensor]) -> float:
        """The one whose log-probs are the nearest: of a grid, then by thirds of the logarithm."""

        def distance(log: float) -> float:
            truth = self._written(behind, server.tokens, math.exp(log))
            return float(torch.cat(server.written).sub(torch.cat(truth)).abs().mean())

        step = math.log(MOST_TEMPERATURE) / 32
        near = min((step * number for number in range(-32, 33)), key=distance)
        low, high = near - step, near + step
        while high - low > 1e-6:
            third = (high - low) / 3
            if distance(low + third) < distance(high - third):
                high -= third
            else:
                low += third
        return math.exp(low)

    def _with_head(self, policy: nn.Module, head: Tensor) -> list[Tensor]:
        """`read` of the policy's last states under other output embeddings."""
        truth = []
        for text in self.texts:
            whole = torch.arange(len(text))[None, :]
            with captured_input(output_embeddings(policy), whole.to(next(policy.parameters()).device)) as states:
                alone(policy, text)
            logits = states[0][0].float().cpu() @ head.float().T  # (T, H), (V, H) -> (T, V)
            truth.append(_read(logits, text))
        return truth

    @staticmethod
    def _written(logits: list[Tensor], tokens: list[list[int]], temperature: float) -> list[Tensor]:
        return [
            _chosen(torch.log_softmax(rows / temperature, -1), drawn)
            for rows, drawn in zip(logits, tokens, strict=True)
        ]


def tokens_of(server: Server, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Tokens that were drawn, and the log-prob of each."""
    try:
        tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if len(tokens) == len(logprobs) and tokens:
            return [int(token) for token in tokens], [float(logprob) for logprob in logprobs]
    except (KeyError, TypeError, ValueError):
        pass
    raise server.foreign("POST /v1/completions", "`token_ids` with a log-prob each (`logprobs.token_logprobs`)")


def _read(logits: Tensor, text: list[int]) -> Tensor:
    """Log-probs of a text's tokens but the first, from the logits of its places. (T.., V) -> (T - 1,)."""
    return _chosen(torch.log_softmax(logits[: len(text) - 1], -1), text[1:])


def _chosen(logprobs: Tensor, tokens: list[int]) -> Tensor:
    """(T, V) -> (T,) on the CPU."""
    return logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None]).squeeze(1).cpu()


def _gap(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference; infinite where there is no number."""
    gap = float((torch.cat(some) - torch.cat(others)).abs().max())
    return gap if gap == gap else float("inf")
