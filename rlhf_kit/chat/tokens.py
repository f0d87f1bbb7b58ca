"""What PPO did to each token of an answer: log-probs of two models, the penalty, values, rewards, and the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_kit import ops, world
from rlhf_kit.chat.speakers import Speaker
from rlhf_kit.data.chat import encode_completion
from rlhf_kit.data.messages import Message
from rlhf_kit.errors import UserError
from rlhf_kit.generation.next_token import shown, whole
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.models.value import PolicyAndValue, ValueHead, completion_logprobs


class Value(NamedTuple):
    """A value function: its head, on a trunk of its own, or (None) on the policy's."""

    trunk: nn.Module | None
    head: ValueHead


@dataclass(frozen=True)
class Token:
    """`kl`: logprob - reference in nats (k1). `penalty`: -kl_coef times the run's estimate of the KL, and
    sharpening_coef times `reference`. `reward` as PPO gives it: the penalty, and the score at the last token. `value`:
    of the state before the token. The last of several tokens of a character has it as its text, those before it their
    numbers."""

    id: int
    text: str
    logprob: float
    reference: float
    kl: float
    penalty: float
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
    prompt: str | Sequence[Message],
    completion: str | Sequence[int],
    *,
    kl_coef: float = 0.0,
    kl_estimator: str = "k1",
    sharpening_coef: float = 0.0,
    score: float = 0.0,
    temperature: float = 1.0,
    value: Value | None = None,
) -> Change:
    """One answer to a question, or to a conversation, in the chat template, under two models, each in its engine.

    Args:
        completion: tokens, or a text, which ends (`answer`).
        kl_estimator: "k1" or "k3", of what the penalty charges.
        temperature: of the log-probs; PPO's are of the temperature that it samples with.

    Raises:
        UserError: two tokenizers, no tokens, more than fit.
    """
    tokenizer = policy.tokenizer
    if tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise UserError(
            f"{policy.name!r} and {reference.name!r} have different tokenizers: their log-probs are of different "
            "tokens. Choose two models of one family."
        )
    row = answer(policy, prompt, completion)
    (ids,), (own,) = row.prompt_ids.tolist(), row.completion_ids.tolist()
    limits = [speaker.engine.context for speaker in (policy, reference) if speaker.engine.context is not None]
    if not own or len(ids) + len(own) > min(limits, default=math.inf):
        raise UserError(f"The answer has {len(own)} tokens behind {len(ids)}; at least 1 is needed, and all must fit.")
    if not all(0 <= token < policy.engine.vocabulary for token in own):
        raise UserError(f"The answer has tokens beyond the vocabulary of {policy.engine.vocabulary}.")
    inputs = row.model_inputs()
    logprobs, values = policy.engine.call(_read, inputs, temperature, value).result()
    ref_logprobs, _ = reference.engine.call(_read, inputs, temperature, None).result()
    charged, mask = ops.KL_ESTIMATORS[kl_estimator](logprobs, ref_logprobs), row.completion_mask
    bonus = sharpening_coef * ref_logprobs
    penalties, rewards = (
        ops.token_rewards(torch.tensor([number]), charged, mask, kl_coef, bonus) for number in (0.0, score)
    )
    kl = ops.kl_k1(logprobs, ref_logprobs)
    rows = (logprobs, ref_logprobs, kl, penalties, rewards)
    columns = zip(*(row[0].tolist() for row in rows), [None] * len(own) if values is None else values, strict=True)
    tokens = [
        Token(token, whole(shown(tokenizer, [*ids, *own[:at]], [token]), [token]), *numbers)
        for at, (token, numbers) in enumerate(zip(own, columns, strict=True))
    ]
    correct = _correct(prompt, row.texts(tokenizer)[0])
    return Change(tokens, kl.sum().item(), math.exp(logprobs.sum().item()), correct)


def answer(
    policy: Speaker, prompt: str | Sequence[Message], completion: str | Sequence[int], ended: bool = True
) -> Rollout:
    """PPO's own record of one answer, so that it is read as PPO reads it.

    A text has the tokens that SFT and the rewards would give it, its end among them if it has `ended`.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    ids = policy.encode(turns)
    if isinstance(completion, str):
        completion = encode_completion(policy.tokenizer, completion, eos=ended)
    own = list(completion)
    sizes = torch.tensor([len(ids)]), torch.tensor([own], dtype=torch.long), torch.tensor([len(own)])
    return Rollout(torch.tensor([ids]), *sizes, torch.tensor([own[-1:] != [] and own[-1] in policy.ends]))


def _read(
    model: PreTrainedModel, inputs: dict[str, Tensor], temperature: float, value: Value | None
) -> tuple[Tensor, list[float] | None]:
    """Log-probs (1, R) and, with a value function, the value of the state before each token."""
    device = next(model.parameters()).device
    inputs = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    if value is None:
        return completion_logprobs(model, inputs, temperature).cpu(), None
    trunk = None if value.trunk is None else value.trunk.to(device)
    output = PolicyAndValue(model, trunk, value.head.to(device))(**inputs, temperature=temperature)
    return output["logprobs"].cpu(), output["values"][0, :-1].tolist()


def _correct(prompt: str | Sequence[Message], text: str) -> bool | None:
    try:
        return world.judge(prompt, text).correct
    except ValueError:
        return None
