"""What the stages share that sample and need no value model: RLOO and GRPO, from options to the record."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_kit.data.loading import load
from rlhf_kit.data.tokens import Lengths
from rlhf_kit.methods.online import OnlineMixin
from rlhf_kit.models.adapters import refuse_adapted_head
from rlhf_kit.models.checkpoints import load_config, load_policy
from rlhf_kit.models.roles import check_readers
from rlhf_kit.models.weights import is_here
from rlhf_kit.ppo.prompts import Prompts, longest_row
from rlhf_kit.ppo.rewards import RewardFunc, Rewards, check_functions
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import (
    check_model,
    check_settings,
    load_data,
    load_model,
    peft_config,
    refuse_new_model,
    tokenizer_of,
)
from rlhf_kit.stages.output import check_output, numbers
from rlhf_kit.stages.ppo import KINDS, encoded, rewards_of, std_coef
from rlhf_kit.stages.run import finish, train


def run(settings: Settings, trainer_class: type[OnlineMixin]) -> dict | plan.Reading:
    """Train; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    refuse_new_model(settings)
    args, extra = settings.training, settings.extra
    lora_dropout = settings.model.lora_dropout if settings.model.use_peft else 0.0
    trainer_class.refuse(args, lora_dropout, extra.ref_model_name_or_path)
    if settings.data.eval_dataset_name:
        args.check_eval_batches()
    rewards = rewards_of(settings)
    train_data, eval_data, notes = load_data(settings, KINDS, load)
    for rows in filter(None, (train_data, eval_data)):
        check_functions(rewards, rows.column_names)
    tokenizer = tokenizer_of(settings, notes)
    config = plan.known_config(settings, tokenizer, notes)
    train_data = encoded(settings, settings.data.dataset_name, train_data, tokenizer, config, notes)
    eval_data = encoded(settings, settings.data.eval_dataset_name, eval_data, tokenizer, config, notes)
    if settings.run.dry_run:
        sets = [rows for rows in (train_data, eval_data) if isinstance(rows, Prompts)]
        reading = _dry_run(settings, trainer_class, rewards, sets, tokenizer, config, notes)
        if isinstance(train_data, Prompts):
            reading.rows, reading.steps = Lengths(train_data.lengths[:, None]), args.steps(len(train_data))
        return reading

    trainer = trainer_class(
        load_model(settings, tokenizer),
        rewards,
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        peft_config=peft_config(settings.model),
        ref_model=extra.ref_model_name_or_path,
        reward_ensemble=extra.reward_ensemble,
        reward_ensemble_std_coef=std_coef(settings),
    )
    metrics = train(trainer, settings, output)
    if eval_data is not None:
        metrics |= numbers(trainer.evaluate())
    return finish(trainer, settings, output, metrics)


def _dry_run(
    settings: Settings,
    trainer_class: type[OnlineMixin],
    rewards: list[RewardFunc],
    sets: list[Prompts],
    tokenizer: PreTrainedTokenizerBase | None,
    config: PretrainedConfig | None,
    notes: plan.Notes,
) -> plan.Reading:
    """What the run would read. Raises UserError where it would before its first step."""
    args, extra = settings.training, settings.extra
    reference = extra.ref_model_name_or_path
    if tokenizer is not None:
        policy = check_model(settings, tokenizer)
        if policy is not None:
            refuse_adapted_head(policy, trainer_class._name)
        judges = Rewards.looked_at(rewards, args.reward_weights, tokenizer, extra.reward_ensemble, std_coef(settings))
        for rows in sets:
            judges.check(rows, args.max_completion_length, trainer_state=None)
        if reference is not None and is_here("a reference", reference):
            longest = longest_row(sets, args.max_completion_length)
            check_readers(tokenizer, longest, load_policy(reference, device_map="meta"), "shared", None, None)
    names = [name for name in [*rewards, reference] if isinstance(name, str)]
    configs = [notes.reach("model", name, load_config, name) for name in names]
    return plan.Reading(
        notes,
        tokenizer,
        completion=args.max_completion_length,
        copies=(bool(args.beta) and reference is None and not settings.model.use_peft, False),
        frozen=sum(plan.count_parameters(each) for each in configs if each is not None),
    )
