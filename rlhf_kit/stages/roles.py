"""The models of a PPO run as its dry run sees them: by their files, without a weight read, and checked as the trainer
checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.models.checkpoints import context_length, load_config, load_policy, load_reward_model
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.roles import check_readers
from rlhf_kit.models.value import VALUE_MODELS, build_policy_and_value, value_source
from rlhf_kit.models.weights import is_classifier_config, is_here
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
        frozen=sum(plan.count_parameters(found) for found in configs if found is not None),
    )


def _check_models(
    settings: Settings,
    rewards: list[str | Callable],
    prompts: dict[str, Prompts],
    tokenizer: PreTrainedTokenizerBase,
    notes: plan.Notes,
) -> None:
    args, extra, names = settings.training, settings.extra, [name for name in rewards if isinstance(name, str)]
    judges = Rewards(_seen(settings, rewards), None, args.reward_weights, tokenizer, args.per_device_eval_batch_size)
    for rows in prompts.values():
        judges.check(rows, args.max_completion_length, trainer_state=None)
    reference = extra.ref_model_name_or_path
    if reference is not None:
        reference = load_policy(reference, device_map="meta") if is_here("a reference", reference) else None
    policy = check_model(settings, tokenizer)
    if extra.value_model == "reward":
        value_source("reward", names)  # counted whether they are here or not
    value = extra.value_model
    if value not in VALUE_MODELS:
        value = notes.reach("model", value, value_model, value, "meta")
    if policy is not None and value is not None and (value != "reward" or judges.models):
        module = build_policy_and_value(policy, *value_source(value, judges.models), peft_config(settings))
        longest = max(len(row["prompt_ids"]) for rows in prompts.values() for row in rows) + args.max_completion_length
        check_readers(tokenizer, longest, reference, value, module.value_trunk, judges.tokenizer)


def _seen(settings: Settings, rewards: list[str | Callable]) -> list[PreTrainedModel | Ensemble | Callable]:
    """The rewards, their models without weights; `unseen` for those whose files are not on this machine."""
    here = [is_here("a reward model", name) if isinstance(name, str) else True for name in rewards]
    if settings.extra.reward_ensemble is not None:
        return with_ensemble(settings, rewards, "meta") if all(here) else [*filter(callable, rewards), unseen]
    return [
        reward if callable(reward) else load_reward_model(reward, device_map="meta") if there else unseen
        for reward, there in zip(rewards, here, strict=True)
    ]


def unseen(**given) -> None:
    """Stands for a reward model that a dry run cannot look at."""


def with_ensemble(settings: Settings, rewards: list[str | Callable], device_map: str | None = None) -> list:
    """With `--reward_ensemble` the reward models as one reward, in the place of the first of them."""
    extra = settings.extra
    if extra.reward_ensemble is None:
        return rewards
    models = [reward for reward in rewards if isinstance(reward, str)]
    ensemble = Ensemble.from_pretrained(
        models,
        device_map=device_map,
        reduce=extra.reward_ensemble,
        std_coef=extra.reward_ensemble_std_coef,
        batch_size=settings.training.per_device_eval_batch_size,
    )
    return [ensemble if reward == models[0] else reward for reward in rewards if reward not in models[1:]]


def value_model(name: str, device_map: str | None = None) -> str | PreTrainedModel | None:
    """The words `PPOTrainer` knows as they are; anything else is a model to load: None where it is to be looked at on
    the "meta" device, and its files are not on this machine."""
    if name in VALUE_MODELS:
        return name
    near = did_you_mean(name, VALUE_MODELS)
    if near and not Path(name).exists():
        raise UserError(f"--value_model {name!r} is not one of {', '.join(VALUE_MODELS)}, nor a folder.{near}")
    config = load_config(name)
    if device_map is not None and not is_here("a value model", name):
        return None
    load = load_reward_model if is_classifier_config(config) else load_policy
    return load(name, device_map=device_map)
