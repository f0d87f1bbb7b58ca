"""Stage 2, the reward model (獎勵模型): it learns from ranked answers which one people would like better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhf_kit.data.loading import load
from rlhf_kit.data.tokens import Lengths
from rlhf_kit.eval.reward.task import evaluate_reward
from rlhf_kit.models.checkpoints import load_reward_model
from rlhf_kit.models.heads import PLAIN, row_format
from rlhf_kit.models.prefix import check_shared_prefix
from rlhf_kit.reward.calibration import demonstrated_answers, recenter
from rlhf_kit.reward.config import RewardConfig
from rlhf_kit.reward.trainer import RewardTrainer, encode_lists
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.calibration import (
    CalibrationArguments,
    answers_to_calibrate_on,
    calibration_data,
    check_calibration,
    check_policy,
)
from rlhf_kit.stages.card import reward_card
from rlhf_kit.stages.loading import check_model, check_settings, load_data, peft_config, refuse_new_model, tokenizer_of
from rlhf_kit.stages.output import check_output, numbers
from rlhf_kit.stages.run import finish, run_stage, train


def run(settings: Settings) -> dict | plan.Reading:
    """Train a reward model; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    refuse_new_model(settings)
    args = settings.training
    check_calibration(settings)
    train_data, eval_data, notes = load_data(settings, ("ranked", "pairs", "thumbs"), load, args.on_bad_row)
    demonstrations = calibration_data(settings, notes)
    tokenizer = tokenizer_of(settings, notes)
    lists, counts = encoded_lists(settings, {"train": train_data, "eval": eval_data}, tokenizer, notes)
    demonstrated = None
    if tokenizer is not None and demonstrations is not None:
        demonstrated = demonstrated_answers(demonstrations, tokenizer)
    if settings.run.dry_run:
        return _dry_run(settings, train_data, lists, tokenizer, notes)

    answers = answers_to_calibrate_on(settings, train_data, demonstrated)
    trainer = RewardTrainer(
        load_scorer(settings, tokenizer),
        args=args,
        train_dataset=lists["train"],
        eval_dataset=lists.get("eval"),
        processing_class=tokenizer,
        peft_config=peft_config(settings.model),
    )
    trainer.data_counts |= counts
    metrics = train(trainer, settings, output)
    if answers is not None:
        recenter(trainer, answers, scale=demonstrated is None)
    evaluation = None
    if eval_data is not None:
        metrics |= numbers(trainer.evaluate())
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # whose weights are in pieces
            evaluation = evaluate_reward(trainer.accelerator.unwrap_model(trainer.model), tokenizer, eval_data)
    record = finish(trainer, settings, output, metrics)
    if args.should_save:
        output.files.write("README.md", reward_card(trainer, settings, record, evaluation))
    return record


def load_scorer(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model to train, its scalar head new where it has none; in a dry run without weights."""
    set_seed(settings.training.seed)  # a new head is drawn
    model = settings.model
    return load_reward_model(
        model.model_name_or_path,
        tokenizer=tokenizer,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
        attn_implementation=model.attn_implementation,
        device_map="meta" if settings.run.dry_run else None,
    )


def _dry_run(
    settings: Settings,
    train_data: Dataset | None,
    lists: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase | None,
    notes: plan.Notes,
) -> plan.Reading:
    policy = settings.extra.calibration_policy
    if policy and train_data is not None:
        notes.reach("model", policy, check_policy, settings, train_data)
    model = check_model(settings, tokenizer, load_scorer)
    if model is not None and settings.training.shared_prefix:
        check_shared_prefix(model)
    rows = Lengths(map(len, row) for row in lists["train"]["input_ids"]) if "train" in lists else None
    return plan.Reading(notes, tokenizer, rows)


def encoded_lists(
    settings: Settings,
    data: Mapping[str, Dataset | None],
    tokenizer: PreTrainedTokenizerBase | None,
    notes: plan.Notes,
) -> tuple[dict[str, Dataset], dict[str, dict[str, int]]]:
    """(the comparisons as tokens, counts of what was cut or dropped) by name; nothing where no tokenizer is known."""
    lists, counts = {}, {}
    config, limit = plan.known_config(settings, tokenizer, notes), plan.length_limit(settings, tokenizer, notes)
    for name, rows in data.items():
        if tokenizer is not None and rows is not None:
            reads = PLAIN if config is None else row_format(config, tokenizer)
            encoded = encode_lists(rows, tokenizer, limit, reads, name, settings.training, notes.tell)
            lists[name], counts[name] = encoded
    return lists, counts


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("reward", RewardConfig, run, options, extra_class=CalibrationArguments)
