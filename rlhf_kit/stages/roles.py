"""The models of a PPO run as its dry run sees them: by their files, without a weight read, and checked as the trainer
checks them."""

from __future__ import annotations

from collections.abc import Callable

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_kit.models.checkpoints import load_config, load_policy
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.roles import check_readers, load_value_model, value_source
from rlhf_kit.models.value import build_policy_and_value
from rlhf_kit.models.weights import is_here
from rlhf_kit.ppo.metrics import check_share
from rlhf_kit.ppo.prompts import PretrainingTexts, Prompts, text_length
from rlhf_kit.ppo.rewards import Rewards
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import check_model, peft_config


def dry_run(
    settings: Settings,
    rewards: list[str | Callable],
    data: dict[str, Prompts | Dataset | None],
    tokenizer: PreTrainedTokenizerBase | None,
    config: PretrainedConfig | None,
    notes: plan.Notes,
) -> None:
    """Raise UserError where the run would before its first rollout, and show the plan.

    Args:
        data: "train" and "eval" prompts, with their tokens where there is a tokenizer, and "ptx" texts; None where
            there are none, or the hub could not be asked.
    """
    args, extra, train_data = settings.training, settings.extra, data["train"]
    tokens = None
    if tokenizer is not None:
        prompts = {name: data[name] for name in ("train", "eval") if data[name] is not None}
        if "eval" in prompts:
            check_share(prompts["eval"], args.world_size)
        if data["ptx"] is not None:
            limit = context_length(config) if config is not None else None
            PretrainingTexts(data["ptx"], tokenizer, text_length(args.ptx_max_length, limit))
        if "train" in prompts:
            tokens = sum(len(row["prompt_ids"]) + args.max_completion_length for row in prompts["train"])
        _check_models(settings, rewards, prompts, tokenizer, notes)
    names = [name for name in [*rewards, extra.ref_model_name_or_path] if isinstance(name, str)]
    configs = [notes.reach("model", name, load_config, name) for name in names]
    steps = args.steps(0 if train_data is None else len(train_data))
    plan.show_plan(
        settings,
        None if train_data is None else len(train_data),
        tokens,
        notes,
        tokenizer,
        steps=steps if steps > 0 else None,
        copies=(extra.ref_model_name_or_path is None and not settings.model.use_peft, extra.value_model != "shared"),
        frozen=sum(plan.count_parameters(each) for each in configs if each is not None),
    )


def _check_models(
    settings: Settings,
    rewards: list[str | Callable],
    prompts: dict[str, Prompts],
    tokenizer: PreTrainedTokenizerBase,
    notes: plan.Notes,
) -> None:
    args, extra, names = settings.training, settings.extra, [name for name in rewards if isinstance(name, str)]
    judges = _seen(settings, rewards, tokenizer)
    for rows in prompts.values():
        judges.check(rows, args.max_completion_length, trainer_state=None)
    reference = extra.ref_model_name_or_path
    if reference is not None:
        reference = load_policy(reference, device_map="meta") if is_here("a reference", reference) else None
    policy = check_model(settings, tokenizer)
    if extra.value_model == "reward":
        value_source("reward", names)  # counted whether they are here or not
    value = notes.reach("model", extra.value_model, load_value_model, extra.value_model, "meta")
    if policy is not None and value is not None and (value != "reward" or judges.models):
        module = build_policy_and_value(policy, *value_source(value, judges.models), peft_config(settings))
        longest = max(len(row["prompt_ids"]) for rows in prompts.values() for row in rows) + args.max_completion_length
        check_readers(tokenizer, longest, reference, value, module.value_trunk, judges.tokenizer)


def _seen(settings: Settings, rewards: list[str | Callable], tokenizer: PreTrainedTokenizerBase) -> Rewards:
    """The rewards, their models without weights; `unseen` for those whose files are not on this machine."""
    args, ensemble = settings.training, settings.extra.reward_ensemble
    there = [isinstance(reward, str) and not is_here("a reward model", reward) for reward in rewards]
    if ensemble is not None and any(there):
        rewards, ensemble = [*filter(callable, rewards), unseen], None
    else:
        rewards = [unseen if elsewhere else reward for reward, elsewhere in zip(rewards, there, strict=True)]
    return Rewards(
        rewards,
        None,
        args.reward_weights,
        tokenizer,
        args.per_device_eval_batch_size,
        ensemble=ensemble,
        std_coef=None if ensemble is None else std_coef(settings),
        device_map="meta",
    )


def unseen(**arguments) -> None:
    """Stands for a reward model that a dry run cannot look at."""


def std_coef(settings: Settings) -> float | None:
    """`--reward_ensemble_std_coef` where it is given."""
    return settings.extra.reward_ensemble_std_coef if "reward_ensemble_std_coef" in settings.given else None
