"""What PPO did to each token of an answer: log-probs of two models, the penalty, values, rewards, and the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_kit import ops, world
from rlhf_kit.chat.speakers import Speaker
from rlhf_kit.data.chat import decode_completion
from rlhf_kit.errors import UserError
from rlhf_kit.generation.next_token import shown
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.inputs import read_json
from rlhf_kit.models.value import PolicyAndValue, ValueHead, completion_logprobs

HEAD = ("value_head.weight", "value_head.bias")  # all that a value function on the policy's trunk has


@dataclass(frozen=True)
class Token:
    """`kl`: what the penalty charges, logprob - reference in nats (k1). `reward` as PPO gives it: -kl_coef * kl, and
    the score at the last token. `value`: of the state before the token."""

    id: int
    text: str
    logprob: float
    reference: float
    kl: float
    reward: float
    value: float | None


@dataclass(frozen=True)
class Change:
    """An answer's tokens, their KL, the policy's probability of all of them, and whether the world calls it right."""

    tokens: list[Token]
    kl: float
    probability: float
    correct: bool | None  # None: the prompt is none of the world's

    @property
    def sure_and_wrong(self) -> float | None:
        """The probability of an answer that is wrong; None where it is right or cannot be judged."""
        return self.probability if self.correct is False else None


def change(
    policy: Speaker,
    reference: Speaker,
    prompt: str,
    completion_ids: Sequence[int],
    *,
    kl_coef: float = 0.0,
    score: float = 0.0,
    temperature: float = 1.0,
    value_head: ValueHead | None = None,
) -> Change:
    """One answer to a question in the chat template, under two models, each in its engine.

    Args:
        temperature: of the log-probs; PPO's are of the temperature that it samples with.
        value_head: of `shared_value_head`.

    Raises:
        UserError: two tokenizers, no tokens, more than fit.
    """
    tokenizer = policy.tokenizer
    if tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise UserError(
            f"{policy.name!r} and {reference.name!r} have different tokenizers: their log-probs are of different "
            "tokens. Choose two models of one family."
        )
    turns = [{"role": "user", "content": prompt}]
    ids, own = policy.encode(turns), list(completion_ids)
    limits = [speaker.engine.context for speaker in (policy, reference) if speaker.engine.context is not None]
    if not own or len(ids) + len(own) > min(limits, default=math.inf):
        raise UserError(f"The answer has {len(own)} tokens behind {len(ids)}; at least 1 is needed, and all must fit.")
    inputs = _row(ids, own).model_inputs()
    logprobs, values = policy.engine.call(_read, inputs, temperature, value_head).result()
    ref_logprobs, _ = reference.engine.call(_read, inputs, temperature, None).result()
    kl = ops.kl_k1(logprobs, ref_logprobs)
    rewards = ops.token_rewards(torch.tensor([score]), kl, inputs["completion_mask"], kl_coef)
    rows = (logprobs, ref_logprobs, kl, rewards)
    columns = zip(*(row[0].tolist() for row in rows), [None] * len(own) if values is None else values, strict=True)
    tokens = [
        Token(token, shown(tokenizer, [*ids, *own[:at]], [token]), *numbers)
        for at, (token, numbers) in enumerate(zip(own, columns, strict=True))
    ]
    text = decode_completion(tokenizer, own[:-1] if own[-1] in policy.ends else own)
    return Change(tokens, kl.sum().item(), math.exp(logprobs.sum().item()), _correct(prompt, text))


def shared_value_head(folder: Path) -> ValueHead | None:
    """The value head of a run that has it on the policy's trunk; None for none, or for one with its own trunk."""
    path = folder / "value.safetensors"
    weights = load_file(path) if path.is_file() else {}
    if set(weights) != set(HEAD):
        return None
    head = ValueHead(weights[HEAD[0]].shape[1])
    head.load_state_dict({name.partition(".")[2]: value for name, value in weights.items()})
    return head


def of_run(folder: Path) -> dict[str, Any]:
    """What `change` is to know of a PPO run: kl_coef and temperature where its run.json tells them, the value head."""
    path = folder / "run.json"
    record = read_json(path) if path.is_file() else {}
    config = record.get("config") if isinstance(record, dict) and record.get("stage") == "ppo" else {}
    config = config if isinstance(config, dict) else {}
    options = {name: config[name] for name in ("kl_coef", "temperature") if type(config.get(name)) in (int, float)}
    return {**options, "value_head": shared_value_head(folder)}


def _row(ids: list[int], own: list[int]) -> Rollout:
    """PPO's own record of one answer, so that it is read as PPO reads it."""
    sizes = torch.tensor([len(ids)]), torch.tensor([own]), torch.tensor([len(own)])
    return Rollout(torch.tensor([ids]), *sizes, torch.tensor([True]))


def _read(
    model: PreTrainedModel, inputs: dict[str, Tensor], temperature: float, head: ValueHead | None
) -> tuple[Tensor, list[float] | None]:
    """Log-probs (1, R) and, with a head, the value of the state before each token."""
    device = next(model.parameters()).device
    inputs = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    if head is None:
        return completion_logprobs(model, inputs, temperature).cpu(), None
    output = PolicyAndValue(model, None, head.to(device))(**inputs, temperature=temperature)
    return output["logprobs"].cpu(), output["values"][0, :-1].tolist()


def _correct(prompt: str, text: str) -> bool | None:
    try:
        return world.judge(prompt, text).correct
    except ValueError:
        return None
