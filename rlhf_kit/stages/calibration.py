"""What a reward model's zero is: its training answers' mean, that of demonstrations, or that of a policy's answers."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_config, load_policy, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.weights import is_here
from rlhf_kit.options import option
from rlhf_kit.reward.calibration import Answers, ChosenPrompt, choose_prompts, policy_answers
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import read_rows
from rlhf_kit.stages.plan import Notes


@dataclass
class CalibrationArguments:
    calibration_dataset_name: str | None = option(
        None, "Demonstrations whose mean score is to be 0 (InstructGPT, 3.5); the spread stays as it is."
    )
    calibration_policy: str | None = option(
        None,
        "Policy whose answers to the training prompts are to have mean 0 and std 1 (Ziegler et al. 2019), usually "
        "the SFT model that PPO starts from.",
    )
    calibration_samples: int = option(256, "Answers sampled from the policy for it.")
    calibration_max_completion_length: int = option(128, "Tokens of such an answer.")


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
            raise UserError(f"--{name} has no effect without --calibration_policy. Give both, or leave it out.")


def calibration_data(settings: Settings, notes: Notes) -> Dataset | None:
    """The demonstrations, where they are asked for."""
    source, split = settings.extra.calibration_dataset_name, settings.data.dataset_train_split
    return read_rows(source, ("demonstrations",), split, load, notes) if source else None


def answers_to_calibrate_on(settings: Settings, train_data: Dataset, demonstrated: Answers | None) -> Answers | None:
    """Those whose scores set the zero; None: the training's own. Made before anything is trained."""
    name, trust = settings.extra.calibration_policy, settings.model.trust_remote_code
    if demonstrated is not None or not name:
        return demonstrated
    tokenizer, chosen = _chosen(settings, train_data)
    policy = load_policy(name, trust_remote_code=trust).to(settings.training.device)
    most, seed = settings.extra.calibration_max_completion_length, settings.training.seed
    return policy_answers(policy, tokenizer, chosen, most, seed)


def check_policy(settings: Settings, train_data: Dataset) -> None:
    """Raises UserError for a policy that could not be loaded or asked; no weight is read."""
    _chosen(settings, train_data)
    name = settings.extra.calibration_policy
    if is_here("a causal language model", name):
        load_policy(name, trust_remote_code=settings.model.trust_remote_code, device_map="meta")


def _chosen(settings: Settings, train_data: Dataset) -> tuple[PreTrainedTokenizerBase, list[ChosenPrompt]]:
    """The policy's tokenizer, and the prompts that it is to answer."""
    extra, trust = settings.extra, settings.model.trust_remote_code
    tokenizer = load_tokenizer(extra.calibration_policy, trust)
    context = context_length(load_config(extra.calibration_policy, trust))
    counts = extra.calibration_samples, extra.calibration_max_completion_length
    name = "prompts of --calibration_policy"
    return tokenizer, choose_prompts(train_data, tokenizer, context, *counts, settings.training.seed, name)
