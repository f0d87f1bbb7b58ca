"""Stage 3, PPO (強化學習): the policy learns to earn the reward while it stays near the model it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_kit.data.loading import load
from rlhf_kit.data.tokens import Lengths
from rlhf_kit.errors import UserError, each
from rlhf_kit.models.checkpoints import check_scorer, load_config
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.roles import load_value_model
from rlhf_kit.options import option
from rlhf_kit.ppo.config import RENAMED, PPOConfig
from rlhf_kit.ppo.metrics import check_share
from rlhf_kit.ppo.prompts import PretrainingTexts, Prompts, encode_prompts, longest_row, rows_a_forward, text_length
from rlhf_kit.ppo.rewards import FUNCTION, check_functions, read_rewards
from rlhf_kit.ppo.server import rollout_server
from rlhf_kit.ppo.trainer import PPOTrainer, check_models
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import (
    check_model,
    check_settings,
    load_data,
    load_model,
    peft_config,
    read_rows,
    refuse_new_model,
    tokenizer_of,
)
from rlhf_kit.stages.output import check_output, numbers
from rlhf_kit.stages.run import finish, run_stage, train

KINDS = ("prompts", "ranked", "pairs", "thumbs", "demonstrations")  # all are read as prompts


@dataclass
class RewardArguments:
    reward_funcs: list[str] | None = option(
        None, "Rewards: model ids or folders, Python functions as package.module:function.", required=True
    )
    reward_ensemble: Literal["mean", "min", "mean-std"] | None = option(
        None, "Combine all reward models into one reward: their mean, min, or mean minus their std."
    )
    reward_ensemble_std_coef: float = option(1.0, "How many standard deviations mean-std subtracts.")
    ref_model_name_or_path: str | None = option(
        None, "Reference policy of the KL penalty. Default: the initial model."
    )
    max_prompt_length: int | None = option(
        None, "Leave out longer prompts, in tokens. Default: a prompt that does not fit stops the run."
    )


@dataclass
class PPOArguments(RewardArguments):
    ptx_dataset_name: str | None = option(None, "Texts for next-token training alongside PPO, weighted by `ptx_coef`.")
    value_model: str = option(
        "shared",
        "shared (a head on the policy), separate (its own trunk), reward (from the reward model), or a model.",
    )


def run(settings: Settings) -> dict | plan.Reading:
    """Run PPO; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    refuse_new_model(settings)
    settings.training.micro_batches(settings.training.world_size)
    extra = settings.extra
    rewards = rewards_of(settings, extra.value_model)
    train_data, eval_data, notes = load_data(settings, KINDS, load)
    for rows in filter(None, (train_data, eval_data)):
        check_functions(rewards, rows.column_names)
    ptx_data = load_texts(settings, notes)
    tokenizer = tokenizer_of(settings, notes)
    config = plan.known_config(settings, tokenizer, notes)
    train_data = encoded(settings, settings.data.dataset_name, train_data, tokenizer, config, notes)
    eval_data = encoded(settings, settings.data.eval_dataset_name, eval_data, tokenizer, config, notes)
    if ptx_data is not None and config is not None:
        text_length(settings.training.ptx_max_length, context_length(config))
    if config is not None:
        sets = [rows for rows in (train_data, eval_data) if isinstance(rows, Prompts)]
        rollout_server(settings.training, config, longest_row(sets, settings.training.max_completion_length))
    if settings.run.dry_run:
        data = {"train": train_data, "eval": eval_data, "ptx": ptx_data}
        return _dry_run(settings, rewards, data, tokenizer, config, notes)

    trainer = PPOTrainer(
        load_model(settings, tokenizer),
        rewards,
        args=settings.training,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        peft_config=peft_config(settings.model),
        ref_model=extra.ref_model_name_or_path,
        value_model=extra.value_model,
        ptx_dataset=ptx_data,
        reward_ensemble=extra.reward_ensemble,
        reward_ensemble_std_coef=std_coef(settings),
        keep_base=settings.model.merge_adapter,
    )
    metrics = train(trainer, settings, output)
    if eval_data is not None:
        metrics |= numbers(trainer.evaluate())
    return finish(trainer, settings, output, metrics)


def rewards_of(settings: Settings, *value_model: str) -> list[str | Callable]:
    """`--reward_funcs`, the functions among them imported. Raises UserError with all that is wrong with them."""
    extra = settings.extra
    read = partial(read_rewards, extra.reward_funcs, extra.reward_ensemble, std_coef(settings), *value_model)
    check = partial(check_scorers, extra.reward_funcs, plan.Notes(settings.run.dry_run))
    return each(lambda step: step(), [read, check])[0]


def std_coef(settings: Settings) -> float | None:
    """`--reward_ensemble_std_coef` where it is given."""
    return settings.extra.reward_ensemble_std_coef if "reward_ensemble_std_coef" in settings.given else None


def check_scorers(names: list[str], notes: plan.Notes) -> None:
    """Refuse models that give no score, where a dry run can reach them."""

    def check(name: str) -> None:
        config = notes.reach("model", name, load_config, name, what="a reward model")
        if config is not None:
            check_scorer(name, config)

    each(check, [name for name in names if not FUNCTION.fullmatch(name)])


def load_texts(settings: Settings, notes: plan.Notes) -> Dataset | None:
    """The rows of `--ptx_dataset_name`; None where there is none, or a dry run cannot reach the hub."""
    source = settings.extra.ptx_dataset_name
    if (source is None) != (settings.training.ptx_coef == 0):
        raise UserError(
            f"--ptx_dataset_name {source} and --ptx_coef {settings.training.ptx_coef} go together: give both "
            "(InstructGPT's coefficient is 27.8) or neither."
        )
    if source is None:
        return None
    rows = read_rows(source, ("text",), settings.data.dataset_train_split, load, notes)
    if rows is not None and settings.provenance is not None:
        settings.provenance.add("ptx data", rows)
    return rows


def encoded(
    settings: Settings,
    source: str | None,
    rows: Dataset | None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: PretrainedConfig | None,
    notes: plan.Notes,
) -> Prompts | Dataset | None:
    """Prompts with their tokens, those that are to be left out left out; as they are where no tokenizer is known."""
    if rows is None or tokenizer is None:
        return rows
    limit = context_length(config) if config is not None else None
    args, most = settings.training, settings.extra.max_prompt_length
    given = tokenizer, args.max_completion_length, limit, source, most, notes.tell
    return encode_prompts(rows, *given, workers=args.dataset_num_proc)


def _dry_run(
    settings: Settings,
    rewards: list[str | Callable],
    data: dict[str, Prompts | Dataset | None],
    tokenizer: PreTrainedTokenizerBase | None,
    config: PretrainedConfig | None,
    notes: plan.Notes,
) -> plan.Reading:
    """What the run would read. Raises UserError where it would before its first rollout.

    Args:
        data: "train" and "eval" prompts, with their tokens where there is a tokenizer, and "ptx" texts; None where
            there are none, or the hub could not be asked.
    """
    args, extra, train_data = settings.training, settings.extra, data["train"]
    ptx = fit = None
    if tokenizer is not None:
        if data["eval"] is not None:
            check_share(data["eval"], args.world_size)
        if data["ptx"] is not None:
            limit = context_length(config) if config is not None else None
            ptx = PretrainingTexts(
                data["ptx"], tokenizer, text_length(args.ptx_max_length, limit), args.dataset_num_proc
            )
        prompts = [data[name] for name in ("train", "eval") if data[name] is not None]
        if train_data is not None and config is not None and args.per_device_train_batch_size is None:
            fit = rows_a_forward(args, config, longest_row(prompts, args.max_completion_length), ptx)
        check_models(
            check_model(settings, tokenizer),
            rewards,
            prompts,
            tokenizer,
            args,
            ref_model=extra.ref_model_name_or_path,
            value_model=notes.reach("model", extra.value_model, load_value_model, extra.value_model, "meta"),
            peft_config=peft_config(settings.model),
            reward_ensemble=extra.reward_ensemble,
            reward_ensemble_std_coef=std_coef(settings),
        )
    names = [name for name in [*rewards, extra.ref_model_name_or_path] if isinstance(name, str)]
    configs = [notes.reach("model", name, load_config, name) for name in names]
    steps = args.steps(0 if train_data is None else len(train_data))
    return plan.Reading(
        notes,
        tokenizer,
        rows=None if train_data is None or tokenizer is None else Lengths(train_data.lengths[:, None]),
        completion=args.max_completion_length,
        steps=steps if steps > 0 else None,
        copies=(extra.ref_model_name_or_path is None and not settings.model.use_peft, extra.value_model != "shared"),
        frozen=sum(plan.count_parameters(each) for each in configs if each is not None),
        rows_a_forward=fit,
    )


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("ppo", PPOConfig, run, options, extra_class=PPOArguments, renamed=RENAMED)
