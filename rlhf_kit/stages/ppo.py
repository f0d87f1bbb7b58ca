"""Stage 3, PPO (強化學習): the policy learns to earn the reward while it stays near the model it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError, each
from rlhf_kit.models.checkpoints import check_scorer, load_config
from rlhf_kit.models.forward import context_length
from rlhf_kit.ppo.config import RENAMED, PPOConfig
from rlhf_kit.ppo.prompts import Prompts, encode_prompts, text_length
from rlhf_kit.ppo.rewards import FUNCTION, check_functions, read_rewards
from rlhf_kit.ppo.trainer import PPOTrainer
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import (
    check_settings,
    load_data,
    load_model,
    peft_config,
    read_rows,
    refuse_new_model,
    tokenizer_of,
)
from rlhf_kit.stages.output import check_output, numbers
from rlhf_kit.stages.roles import dry_run, std_coef
from rlhf_kit.stages.run import finish, run_stage, train

KINDS = ("prompts", "ranked", "pairs", "thumbs", "demonstrations")  # all are read as prompts


@dataclass
class PPOArguments:
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: model ids or folders, Python functions as package.module:function.",
            "required": True,
        },
    )
    reward_ensemble: Literal["mean", "min", "mean-std"] | None = field(
        default=None, metadata={"help": "Make all reward models one reward: their mean, min, or mean less their std."}
    )
    reward_ensemble_std_coef: float = field(
        default=1.0, metadata={"help": "How many of their standard deviations mean-std subtracts."}
    )
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference policy of the KL penalty. Default: the model as it starts."}
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out prompts of more tokens. Default: a prompt that does not fit stops the run."},
    )
    ptx_dataset_name: str | None = field(
        default=None, metadata={"help": "Texts for next-token training beside PPO, weighed by `ptx_coef`."}
    )
    value_model: str = field(
        default="shared",
        metadata={
            "help": "shared (a head on the policy), separate (its own trunk), reward (from the reward model), "
            "or a model."
        },
    )


def run(settings: Settings) -> dict:
    """Run PPO; returns what `run.json` holds."""
    output = check_output(settings)
    check_settings(settings)
    refuse_new_model(settings)
    settings.training.micro_batches(settings.training.world_size)
    extra = settings.extra
    ensemble = extra.reward_ensemble, std_coef(settings), extra.value_model
    read = partial(read_rewards, extra.reward_funcs, *ensemble)
    check = partial(check_scorers, extra.reward_funcs, plan.Notes(settings.run.dry_run))
    rewards, _ = each(lambda step: step(), [read, check])
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
    if settings.run.dry_run:
        data = {"train": train_data, "eval": eval_data, "ptx": ptx_data}
        dry_run(settings, rewards, data, tokenizer, config, notes)
        return {}

    trainer = PPOTrainer(
        load_model(settings, tokenizer),
        rewards,
        args=settings.training,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        peft_config=peft_config(settings),
        ref_model=extra.ref_model_name_or_path,
        value_model=extra.value_model,
        ptx_dataset=ptx_data,
        reward_ensemble=extra.reward_ensemble,
        reward_ensemble_std_coef=std_coef(settings),
    )
    metrics = train(trainer, settings, output)
    if eval_data is not None:
        metrics |= numbers(trainer.evaluate())
    return finish(trainer, settings, output, metrics)


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
    longest, most = settings.training.max_completion_length, settings.extra.max_prompt_length
    return encode_prompts(rows, tokenizer, longest, limit, source, most, notes.tell)


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("ppo", PPOConfig, run, options, extra_class=PPOArguments, renamed=RENAMED)
