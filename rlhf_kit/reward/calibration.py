"""Where the zero of a trained reward model is put: at the mean score of demonstrations, or of a policy's own answers.

References
    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593, section 2.2: the
        policy's answers get mean 0 and variance 1
    Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5: demonstrations get mean 0
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_each, encode_prompt, set_chat_template
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.dropout import eval_mode
from rlhf_kit.models.forward import unwrapped
from rlhf_kit.models.heads import center_scores, score_texts
from rlhf_kit.models.room import Room
from rlhf_kit.reward.trainer import RewardTrainer


class Answers(NamedTuple):
    """N prompts and a completion to each, whose scores set the zero."""

    prompts: list[str | Sequence[Message]]
    completions: list[str]


class ChosenPrompt(NamedTuple):
    """A prompt and its tokens, as the policy reads them."""

    prompt: str | Sequence[Message]
    ids: list[int]


def demonstrated_answers(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Answers:
    """The last answer of each demonstration, with the turns before it as its prompt.

    Args:
        rows: with `messages`, or `prompt` and `completion` as texts.
        tokenizer: the reward model's; it gets the plain-text chat template if it has none and prompts are messages.

    Raises:
        UserError: naming the rows whose prompts the chat template refuses.
    """
    if "messages" in rows.column_names:
        answers = Answers(
            [turns[:-1] for turns in rows["messages"]], [turns[-1]["content"] for turns in rows["messages"]]
        )
    else:
        answers = Answers(list(rows["prompt"]), list(rows["completion"]))
    _encoded(answers.prompts, tokenizer, "calibration")
    return answers


def choose_prompts(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    samples: int,
    max_completion_length: int,
    seed: int,
    name: str = "calibration",
) -> list[ChosenPrompt]:
    """`samples` prompts for a policy to answer, drawn by `seed`: different ones, and each again where they are few.

    Args:
        rows: with `prompt`, text or messages. tokenizer: the policy's.
        context: tokens that the policy reads at once; None: any number. A prompt that leaves no room for
            `max_completion_length` tokens is not drawn.
        name: of the rows, in messages.

    Raises:
        UserError: where no prompt leaves room; for prompts that the chat template refuses.
    """
    prompts = list({prompt_key(prompt): prompt for prompt in rows.shuffle(seed=seed)["prompt"]}.values())
    ids = _encoded(prompts, tokenizer, name)
    room = Room(context, max_completion_length, "calibration_max_completion_length")
    both = zip(prompts, ids, strict=True)
    fitting = [ChosenPrompt(prompt, tokens) for prompt, tokens in both if tokens and room.holds(len(tokens))]
    if not fitting:
        shortest = room.lacks(min(map(len, ids)))
        raise UserError(f"{name}: the shortest prompt {shortest}. Lower calibration_max_completion_length.")
    return [fitting[at % len(fitting)] for at in range(samples)]


@torch.no_grad()
def policy_answers(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[ChosenPrompt],
    max_completion_length: int,
    seed: int,
    batch_size: int = 64,
) -> Answers:
    """What `policy` answers to the prompts of `choose_prompts`, at temperature 1, dropout off.

    Args:
        policy: a causal LM, on the device where it is to sample. tokenizer: its own.
        max_completion_length: in tokens. seed: of the draw. batch_size: answers sampled at once; it changes none.
    """
    with eval_mode(policy):
        rollout = sample(
            policy,
            [ids for _, ids in chosen],
            eos_ids=end_ids(policy, tokenizer),
            pad_id=tokenizer.pad_token_id,
            max_completion_length=max_completion_length,
            generator=torch.Generator().manual_seed(seed),
            batch_size=batch_size,
        )
    return Answers([prompt for prompt, _ in chosen], rollout.texts(tokenizer))


def recenter(trainer: RewardTrainer, answers: Answers, scale: bool) -> None:
    """Give these answers a mean score of 0, and with `scale` a population std of 1, from the next save on.

    Call it after `train`, on every process: each scores all answers and comes to the same numbers.

    Raises:
        UserError: where all answers score the same and are to be scaled; of `score_texts`.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    scores = score_texts(model, trainer.tokenizer, *answers, trainer.args.per_device_eval_batch_size)
    center_scores(unwrapped(model).config, scores, scale)


def _encoded(prompts: list, tokenizer: PreTrainedTokenizerBase, name: str) -> list[list[int]]:
    if not isinstance(prompts[0], str):
        set_chat_template(tokenizer)
    return encode_each(prompts, partial(encode_prompt, tokenizer), name)
