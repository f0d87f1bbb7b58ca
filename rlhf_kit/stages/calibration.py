"""What a reward model's zero is: its training answers' mean, that of demonstrations, or that of a policy's answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_each, encode_prompt, set_chat_template
from rlhf_kit.data.loading import load
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import end_ids, load_config, load_policy, load_tokenizer
from rlhf_kit.models.forward import context_length, unwrapped
from rlhf_kit.models.heads import center_scores, score_texts
from rlhf_kit.models.weights import is_here
from rlhf_kit.reward.trainer import RewardTrainer
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import read_rows
from rlhf_kit.stages.plan import Notes


@dataclass
class CalibrationArguments:
    calibration_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Demonstrations whose mean score is to be 0 (InstructGPT, 3.5); the spread stays as it is."},
    )
    calibration_policy: str | None = field(
        default=None,
        metadata={
            "help": "Policy whose answers to the training prompts are to have mean 0 and std 1 (Ziegler et al. 2019), "
            "usually the SFT model that PPO starts from."
        },
    )
    calibration_samples: int = field(default=256, metadata={"help": "Answers sampled from the policy for it."})
    calibration_max_completion_length: int = field(default=128, metadata={"help": "Tokens of such an answer."})


def check_calibration(settings: Settings) -> None:
    """Raises UserError for options that exclude one another."""
    extra = settings.extra
    zeros = [name for name in ("calibration_dataset_name", "calibration_policy") if getattr(extra, name)]
    if len(zeros) == 2:
        raise UserError(
            "--calibration_dataset_name and --calibration_policy both set the zero of the scores; give one of them."
        )
    if zeros and not settings.training.calibrate:
        raise UserError(f"--{zeros[0]} has no effect with --calibrate false. Leave one of them out.")
    for name in ("calibration_samples", "calibration_max_completion_length"):
        if name in settings.given and not extra.calibration_policy:
            raise UserError(f"--{name} goes with --calibration_policy.")


def calibration_data(settings: Settings, notes: Notes) -> Dataset | None:
    """The demonstrations, where they are asked for."""
    source, split = settings.extra.calibration_dataset_name, settings.data.dataset_train_split
    return read_rows(source, ("demonstrations",), split, load, notes) if source else None


def answers_to_calibrate_on(
    settings: Settings, train_data: Dataset, demonstrations: Dataset | None
) -> tuple[list, list[str]] | None:
    """Prompts and answers whose scores set the zero; None: the training's own. Made before anything is trained."""
    if demonstrations is not None:
        prompts, completions = zip(*map(_last_turn, demonstrations), strict=True)
        return list(prompts), list(completions)
    return _policys_answers(settings, train_data) if settings.extra.calibration_policy else None


def recalibrate(trainer: RewardTrainer, answers: tuple[list, list[str]], scale: bool) -> None:
    """Give `answers` a mean score of 0, and with `scale` a std of 1. Every process does the same."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    scores = score_texts(model, trainer.tokenizer, *answers, trainer.args.per_device_eval_batch_size)
    center_scores(unwrapped(model).config, scores, scale)


def _last_turn(row: dict) -> tuple:
    if "messages" in row:
        return row["messages"][:-1], row["messages"][-1]["content"]
    return row["prompt"], row["completion"]


def check_policy(settings: Settings, train_data: Dataset) -> None:
    """Raises UserError for a policy that could not be loaded or asked; no weight is read."""
    _chosen_prompts(settings, train_data)
    name = settings.extra.calibration_policy
    if is_here("a causal language model", name):
        load_policy(name, trust_remote_code=settings.model.trust_remote_code, device_map="meta")


def _policys_answers(settings: Settings, train_data: Dataset) -> tuple[list, list[str]]:
    """Prompts of the training data, drawn by the seed, and what the policy answers to each."""
    tokenizer, chosen = _chosen_prompts(settings, train_data)
    policy = load_policy(settings.extra.calibration_policy, trust_remote_code=settings.model.trust_remote_code)
    return [prompt for prompt, _ in chosen], sampled(
        policy.to(settings.training.device).eval(), tokenizer, chosen, settings
    )


def _chosen_prompts(settings: Settings, train_data: Dataset) -> tuple[PreTrainedTokenizerBase, list[tuple]]:
    """The policy's tokenizer, and prompts of the training data with their tokens, drawn by the seed."""
    extra, seed = settings.extra, settings.training.seed
    tokenizer = load_tokenizer(extra.calibration_policy, settings.model.trust_remote_code)
    config = load_config(extra.calibration_policy, settings.model.trust_remote_code)
    if not isinstance(train_data[0]["prompt"], str):
        set_chat_template(tokenizer)
    prompts = list({prompt_key(row): row for row in train_data.shuffle(seed=seed)["prompt"]}.values())
    room = (context_length(config) or 1 << 30) - extra.calibration_max_completion_length
    ids = encode_each(prompts, partial(encode_prompt, tokenizer), "prompts of --calibration_policy")
    encoded = [(prompt, of_it) for prompt, of_it in zip(prompts, ids, strict=True) if 0 < len(of_it) <= room]
    if not encoded:
        raise UserError(
            f"No training prompt leaves room for --calibration_max_completion_length "
            f"{extra.calibration_max_completion_length} in the context of {extra.calibration_policy}. Give fewer."
        )
    return tokenizer, [encoded[at % len(encoded)] for at in range(extra.calibration_samples)]


@torch.no_grad()
def sampled(policy, tokenizer: PreTrainedTokenizerBase, chosen: list, settings: Settings) -> list[str]:
    rollout = sample(
        policy,
        [ids for _, ids in chosen],
        eos_ids=end_ids(policy, tokenizer),
        pad_id=tokenizer.pad_token_id,
        max_completion_length=settings.extra.calibration_max_completion_length,
        generator=torch.Generator().manual_seed(settings.training.seed),
        batch_size=64,
    )
    return rollout.texts(tokenizer)
