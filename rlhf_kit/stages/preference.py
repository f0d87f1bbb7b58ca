"""What the stages on people's preferences share: DPO and KTO, from options to the record of the run."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset

from rlhf_kit.data.loading import load
from rlhf_kit.data.tokens import Lengths
from rlhf_kit.methods.answers import KINDS
from rlhf_kit.methods.preference import PreferenceMixin
from rlhf_kit.models.adapters import refuse_adapted_head
from rlhf_kit.models.checkpoints import load_config
from rlhf_kit.options import option
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
from rlhf_kit.stages.run import finish, train


@dataclass
class PreferenceArguments:
    ref_model_name_or_path: str | None = option(
        None, "Reference policy that the policy is compared with. Default: the initial model."
    )


def run(settings: Settings, trainer_class: type[PreferenceMixin]) -> dict | plan.Reading:
    """Train; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    refuse_new_model(settings)
    args, reference = settings.training, settings.extra.ref_model_name_or_path
    trainer_class.refuse(args, settings.model.lora_dropout if settings.model.use_peft else 0.0)
    train_data, eval_data, notes = load_data(settings, KINDS, load)
    tokenizer = tokenizer_of(settings, notes)
    limit = plan.length_limit(settings, tokenizer, notes)
    rows: dict[str, Dataset] = {}
    counts: dict[str, dict[str, int]] = {}
    sources = {"train": settings.data.dataset_name, "eval": settings.data.eval_dataset_name}
    for split, data in {"train": train_data, "eval": eval_data}.items():
        if tokenizer is not None and data is not None:
            encoded = trainer_class.encode(data, tokenizer, limit, sources[split], notes.tell, args.dataset_num_proc)
            rows[split], counts[split] = encoded
    if "train" in rows:
        trainer_class.check_rows(rows["train"])
    if settings.run.dry_run:
        policy = check_model(settings, tokenizer)
        if policy is not None:
            refuse_adapted_head(policy, trainer_class._name)
        other = None if reference is None else notes.reach("model", reference, load_config, reference)
        reading = plan.Reading(notes, tokenizer, copies=(reference is None and not settings.model.use_peft, False))
        reading.frozen = 0 if other is None else plan.count_parameters(other)
        if "train" in rows:
            reading.rows = Lengths([*map(len, trainer_class.texts(row))] for row in rows["train"])
        return reading

    trainer = trainer_class(
        load_model(settings, tokenizer),
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows.get("eval"),
        processing_class=tokenizer,
        peft_config=peft_config(settings.model),
        ref_model=reference,
    )
    metrics = train(trainer, settings, output)
    if eval_data is not None:
        metrics |= numbers(trainer.evaluate())
    metrics |= {
        f"{split}_{name.replace(' ', '_')}": count for split, each in counts.items() for name, count in each.items()
    }
    return finish(trainer, settings, output, metrics)
