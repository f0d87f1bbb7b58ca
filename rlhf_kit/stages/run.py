"""The life of a run: its output folder, its metrics, its end. Every stage goes through `run_stage`.

A run's folder holds the final model and tokenizer, `metrics.jsonl` (one object a log), `checkpoint-N/` and `run.json`
(written last: a folder without it is a run that has not ended).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import transformers

from rlhf_kit.errors import UserError
from rlhf_kit.launched import is_main_process
from rlhf_kit.models.adapters import is_on_adapter, name_base, save, save_base
from rlhf_kit.models.checkpoints import training_precision
from rlhf_kit.models.weights import OWN_BASE, REWARD_CONFIG, located
from rlhf_kit.processes import on_cpu, quiet, refuse_unlaunched
from rlhf_kit.stages.advice import after_end, after_interrupt
from rlhf_kit.stages.arguments import SECRET, Settings, given_values, parse
from rlhf_kit.stages.card import merged_card, stage_card
from rlhf_kit.stages.mappings import checked
from rlhf_kit.stages.output import RECORD, SAVING, CheckpointRecord, MetricsFile, Output, numbers, say_unwritten
from rlhf_kit.stages.plan import Reading, show_plan
from rlhf_kit.stages.publishing import publish
from rlhf_kit.stages.work import counting, work_of
from rlhf_kit.storage import write_fault
from rlhf_kit.terminal import interrupts, say
from rlhf_kit.training import Trainer
from rlhf_kit.training.engines import EngineLine, engine_of
from rlhf_kit.training.progress import show_progress
from rlhf_kit.training.reports import name_run
from rlhf_kit.training.stopping import stopping_at_sigterm
from rlhf_kit.versions import TRAINING, versions


def run_stage(
    stage: str,
    training_class: type,
    run: Callable[[Settings], dict | Reading],
    options: Sequence[str] | Mapping[str, Any],
    extra_class: type | None = None,
    renamed: dict[str, str] | None = None,
) -> None:
    """Read the options, of a command line or by name, and run.

    Raises UserError. Ctrl-C and a disk that takes no more carry a note: what is saved, and how to go on.
    """
    began, settings = time.time(), None
    quiet()
    try:
        complete = functools.partial(complete_for_machine, training_class=training_class)
        settings = parse(stage, training_class, options, extra_class, complete=complete, renamed=renamed)
        refuse_unlaunched(settings.run.accelerate)
        with settings.closing:
            result = run(settings)
            publish(settings)
    except KeyboardInterrupt as interrupt:
        if not isinstance(options, Mapping):
            interrupt.add_note(after_interrupt(stage, options, settings, began, interrupts.is_script()))
        raise
    except Exception as error:
        fault = None if isinstance(error, UserError) else write_fault(error)
        if settings is not None and fault is not None:
            error.add_note(say_unwritten(Path(settings.training.output_dir), fault))
        raise
    if settings.run.dry_run:
        show_plan(settings, result)
    elif is_main_process():
        say(after_end(settings))


# The kit's defaults where transformers' own stand; a stage that chose for itself keeps its choice.
KIT_DEFAULTS = {"logging_steps": 10.0, "save_total_limit": 2}


def complete_for_machine(values: dict[str, Any], training_class: type) -> dict[str, Any]:
    """The kit's defaults for what a user left open: device, precision, logging, checkpoints kept."""
    values = checked(values)
    theirs = {item.name: item.default for item in dataclasses.fields(transformers.TrainingArguments)}
    for item in dataclasses.fields(training_class):
        if item.name in KIT_DEFAULTS and item.default == theirs[item.name]:
            values.setdefault(item.name, KIT_DEFAULTS[item.name])
    if on_cpu():
        values["use_cpu"] = True
        values.setdefault("dataloader_pin_memory", False)
    if values.get("bf16") and values.get("fp16"):
        raise UserError("--bf16 and --fp16 cannot be combined; give one.")
    if values.get("bf16") or values.get("fp16"):
        values.update(training_precision("bf16" if values.get("bf16") else "fp16"))
    elif values.get("use_cpu") or values.get("bf16") is False or values.get("dtype") == "float32":
        values.update(bf16=False, fp16=False)
    else:
        values.update(training_precision("auto"))
    if "gradient_checkpointing" not in values:
        values.setdefault("activation_checkpointing", False)
    return values


# -- training and the end -------------------------------------------------------------------------------------------


def add_callbacks(trainer: Trainer, output: Output) -> None:
    """Log to `metrics.jsonl`, say which engine trains in launched processes, and show the kit's own progress."""
    name_run(trainer.args)
    trainer.add_callback(MetricsFile(output.folder))
    trainer.add_callback(EngineLine(trainer))
    show_progress(trainer)


def train(trainer: Trainer, settings: Settings, output: Output) -> dict[str, float]:
    """Train from the beginning or the checkpoint; returns the training's own numbers. The first call that writes."""
    output.open(settings)
    trainer.accelerator.wait_for_everyone()
    if not settings.model.merge_adapter:
        keep_base(trainer, output)
    add_callbacks(trainer, output)
    trainer.provenance = settings.provenance.record()
    with counting(trainer), stopping_at_sigterm(trainer, settings.run.stop_within):
        trainer.add_callback(CheckpointRecord(output.files))  # the last: it sees whether the others want one
        result = trainer.train(resume_from_checkpoint=str(output.checkpoint) if output.checkpoint else None)
    return numbers(result.metrics)


def keep_base(trainer: Trainer, output: Output) -> None:
    """Save the base of an adapter that is trained on an adapter: merged, in the run's folder, and by that name.

    peft and transformers load an adapter on a plain model only.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = getattr(model, "policy", model)
    if not isinstance(model, peft.PeftModel) or not is_on_adapter(model):
        return
    folder = output.folder / OWN_BASE
    if trainer.args.should_save and not (folder / "config.json").is_file():
        output.files.claim(OWN_BASE)
        save_base(model, folder)
        output.files.settle(OWN_BASE)
    trainer.accelerator.wait_for_everyone()
    name_base(model, folder)


def held_out(trainer: Trainer) -> dict[str, float]:
    """The evaluation's numbers with the perplexity: of a stage whose loss is in nats per token."""
    metrics = numbers(trainer.evaluate())
    return metrics | {"eval_perplexity": math.exp(metrics["eval_loss"])}


def finish(trainer: Trainer, settings: Settings, output: Output, metrics: dict[str, Any]) -> dict:
    """Save the final model into a temporary folder, move it into place, and write `run.json` last.

    Returns what `run.json` holds.
    """
    trainer.check_weights()
    saving = output.folder / SAVING
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True  # the trainer turns it off; who loads the model generates with it
    try:
        trainer.save_model(str(saving))  # every process takes part
    except Exception:
        output.files.remove(SAVING)  # half a model, and perhaps the room for what is still written
        raise
    trainer.accelerator.wait_for_everyone()  # nobody writes into it when it is moved
    if settings.model.merge_adapter and trainer.args.should_save:
        for name in ("adapter_model.safetensors", "adapter_config.json", REWARD_CONFIG):
            (saving / name).unlink(missing_ok=True)
        save(getattr(model, "policy", model), saving, merge=True)
        card = merged_card(f"of this run ({settings.stage})", located(settings.model.model_name_or_path))
        (saving / "README.md").write_text(card, encoding="utf-8")  # in place of peft's
    work = work_of(trainer)
    record = {
        "stage": settings.stage,
        "config": config_record(settings),
        "metrics": numbers(metrics),
        "steps": trainer.state.global_step,
        "stopped": getattr(trainer, "stop_reason", None),  # why it ended before its steps
        "seed": settings.training.seed,
        "engine": engine_of(trainer),
        "seconds": round(time.time() - output.started, 3),
        "work": work,
        "resumed_from": output.checkpoint.name if output.checkpoint else None,
        "changes": settings.provenance.changes,
        "versions": versions(TRAINING),
    }
    if trainer.args.should_save:
        output.files.take(SAVING)
        if settings.publishes:
            output.files.write("README.md", stage_card(settings, record))
        output.files.write(RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    trainer.accelerator.wait_for_everyone()
    return record


def config_record(settings: Settings) -> dict[str, Any]:
    """What the user gave, by name; everything else is a default of the versions in `run.json`."""
    record = {
        name: value if isinstance(value, (int, float, str, list, dict, type(None))) else str(value)
        for name, value in given_values(settings).items()
        if name not in SECRET
    }
    return json.loads(json.dumps(record, default=str))
