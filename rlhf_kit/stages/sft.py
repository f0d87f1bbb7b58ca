"""Stage 1, supervised fine-tuning (監督式微調): the model learns to answer as the demonstrations do."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from trl import SFTConfig, pack_dataset

from rlhf_kit.data.chat import IGNORED
from rlhf_kit.data.loading import load
from rlhf_kit.data.tokens import Lengths, count_of
from rlhf_kit.models.adapters import refuse_adapted_head
from rlhf_kit.sft import SFTTrainer, encode_demonstrations, put_template, refuse_options
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import (
    check_model,
    check_settings,
    load_data,
    load_model,
    peft_config,
    tell_packing,
    tokenizer_of,
)
from rlhf_kit.stages.output import check_output, numbers
from rlhf_kit.stages.run import finish, run_stage, train


def run(settings: Settings) -> dict | plan.Reading:
    """Fine-tune; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    refuse_options(settings.training)
    train_data, eval_data, notes = load_data(settings, ("demonstrations",), load)
    tokenizer = tokenizer_of(settings, notes)
    limit = plan.length_limit(settings, tokenizer, notes)
    encoded, counts = {}, {}
    if tokenizer is not None:
        put_template(tokenizer, settings.training)
        for split, data in {"train": train_data, "eval": eval_data}.items():
            if data is not None:
                encoded[split], counts[split] = encode_demonstrations(
                    data, tokenizer, limit, split, settings.training.dataset_num_proc
                )
    if settings.run.dry_run:
        policy = check_model(settings, tokenizer)
        if policy is not None:
            refuse_adapted_head(policy, "SFT")
        reading = plan.Reading(notes, tokenizer)
        if "train" in encoded:
            learned = encoded["train"]
            if settings.training.packing and limit:
                learned = pack_dataset(learned, limit, settings.training.packing_strategy)
                tell_packing(settings, notes, len(learned), limit, count_of(learned))
            reading.rows = Lengths([len(ids)] for ids in learned["input_ids"])
            reading.predicted = array("i", (len(labels) - labels.count(IGNORED) for labels in learned["labels"]))
        return reading

    trainer = SFTTrainer(
        load_model(settings, tokenizer),
        args=settings.training,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("eval"),
        processing_class=tokenizer,
        peft_config=peft_config(settings.model),
    )
    waste = {}
    if settings.training.packing:
        learned = trainer.train_dataset
        waste = tell_packing(settings, notes, len(learned), trainer.limit, count_of(learned))
    metrics = train(trainer, settings, output) | waste
    if eval_data is not None:
        metrics |= numbers(trainer.evaluate())
    metrics |= {f"{split}_{name}": n for split, count in counts.items() for name, n in count.items()}
    return finish(trainer, settings, output, metrics)


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("sft", SFTConfig, run, options)
