"""What a run may resume from, and with which options: a resumed run equals one run, or is refused by name.

Each checkpoint keeps what the run trains with (`Provenance`). Of what is given anew

* some would make one run of two, and is refused: the stage, the model, precision, adapters, the optimizer, what says
  which rows a step reads (`FIXED`), and the content of data and models;
* some moves no number that is trained, and is not compared (`FREE`);
* all else, a learning rate or a schedule, holds from the checkpoint on, is said, and stands in `run.json`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_pt_utils import AcceleratorConfig

from rlhf_kit.data.hub import split_revision
from rlhf_kit.data.store import rows_hash
from rlhf_kit.errors import UserError
from rlhf_kit.launched import is_main_process
from rlhf_kit.models.identity import model_hash
from rlhf_kit.stages.arguments import SECRET, Settings
from rlhf_kit.terminal import complain
from rlhf_kit.training.checkpoints import STATE, checkpoints, damage, is_cut_off, last_whole, record, steps_of
from rlhf_kit.training.engines import DEEPSPEED, asked_engines

FIXED = re.compile(
    r"seed|data_seed|bf16|fp16|dtype|use_peft|lora_(r|alpha|target_modules|modules_to_save)|use_(rslora|dora)|init_\w+"
    r"|config_overrides|train_tokenizer|sinusoidal_positions|optim|optim_(args|target_modules)|deepspeed|fsdp(_config)?"
    r"|per_device_train_batch_size|gradient_accumulation_steps|auto_find_batch_size|accelerator_config|parallelism_config"
    r"|dataloader_drop_last|train_sampling_strategy|shuffle_dataset|ignore_data_skip"
    r"|block_size|max_length|packing(_strategy)?|on_bad_row|max_prompt_length"
    r"|rollout_batch_size|mini_batch_size|num_ppo_epochs|ptx_batch_size|reward_ensemble"
    r"|num_generations|num_iterations|steps_per_generation"
)
# Read as content (`SOURCES`, the rows), by their own rule (`_steps_asked`), or of no influence on what is trained.
FREE = re.compile(
    r"(max_steps|num_train_epochs|total_episodes)|dataset_\w+|eval_\w+|max_(train|eval)_samples|ptx_dataset_name"
    r"|model_revision|output_dir|overwrite_output_dir|resume_from_checkpoint|dry_run|do_\w+|trust_remote_code|attn_implementation"
    r"|logging_\w+|log_\w+|save_\w+|hub_\w+|push_to_hub|trackio_\w+|report_to|run_name|project|disable_tqdm|debug"
    r"|num_completions_to_print|skip_memory_metrics|include_\w+|batch_eval_metrics|prediction_loss_only|label_names"
    r"|per_device_eval_batch_size|generation_batch_size|load_best_model_at_end|metric_for_best_model|greater_is_better"
    r"|local_rank|ddp_\w+|tf32|torch_\w+|full_determinism|use_cpu|use_cache|enable_jit_checkpoint|remove_unused_columns"
    r"|restore_callback_states_from_checkpoint|(gradient|activation)_(checkpointing|offloading)(_kwargs)?|use_liger_kernel"
    r"|liger_kernel_config|dataloader_(num_workers|pin_memory|persistent_workers|prefetch_factor|in_order"
    r"|multiprocessing_context)|length_column_name|\w+_full_eval|average_tokens_across_devices|merge_adapter"
    r"|calibrat\w+|model_init_kwargs|dataset_num_proc"
)
SOURCES = ("model_name_or_path", "tokenizer_name_or_path", "reward_funcs", "ref_model_name_or_path", "value_model")
ON_OR_OFF = ("ema_decay", "value_learning_rate", "muon_learning_rate")  # of which a checkpoint keeps a part, or not
RATES = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_")
ROWS = ("per_device_train_batch_size", "gradient_accumulation_steps")  # times the processes: rows a step
# With these a step of any number of processes has the same rows.
SAME_ROWS = {
    "train_sampling_strategy": ("random", "sequential"),
    "dataloader_drop_last": (False,),
    "auto_find_batch_size": (False,),
    "accelerator_config": (None, dataclasses.asdict(AcceleratorConfig())),
}
STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # keep the rate in their state


class Provenance:
    """What a run trains with, beside what the checkpoint was trained with that it goes on from.

    Raises UserError, when made and by `add`, where the two cannot be one run.
    """

    def __init__(self, settings: Settings, checkpoint: Path | None):
        self.checkpoint, self.changes = checkpoint, []
        self.now: dict[str, Any] = {
            "stage": settings.stage,
            "processes": max(1, settings.training.world_size),
            "options": dict(options_of(settings)),
            "content": {name: _of_source(value) for name, value in _named_sources(settings)},
        }
        self.before = None if checkpoint is None else record(checkpoint).get("provenance")
        if checkpoint is None:
            return
        faults = list(self._faults(settings)) if self.before else list(_faults_of_old(settings, checkpoint))
        refuse(checkpoint, [*_steps_asked(settings, checkpoint), *faults])
        if self.before is None:
            _say(f"{checkpoint.name} does not record what it was trained with; only the model's files are compared.")
            return
        self.changes = list(self.before["changes"])
        changed = dict(self._changed())
        if changed:
            self.changes.append({"from_step": steps_of(checkpoint), "options": changed})
            changes = "; ".join(
                f"{name if name == 'processes' else '--' + name} {now} (before: {then})"
                for name, (then, now) in changed.items()
            )
            _say(f"From step {steps_of(checkpoint)} on: {changes}.")

    def _differences(self) -> Iterator[tuple[str, Any, Any]]:
        """(option, before, now) of what differs and moves a number; one that either does not know is its default."""
        before, now = self.before["options"], self.now["options"]
        for name in sorted(before.keys() & now.keys()):
            if before[name] != now[name] and not FREE.fullmatch(name) and name not in SOURCES:
                yield name, before[name], now[name]

    def _is_fixed(self, name: str, before: Any, now: Any) -> bool:
        if name in ROWS and self._other_processes:
            return False  # `_faults_of_processes` looks at them
        options = self.now["options"]
        stateful = {options["lr_scheduler_type"], self.before["options"]["lr_scheduler_type"]} & {*STATEFUL_SCHEDULES}
        held = stateful or options.get("deepspeed")
        return bool(
            FIXED.fullmatch(name)
            or (name in ON_OR_OFF and (before is None) != (now is None))
            or (name == "kl_coef" and options.get("kl_target") is not None)  # adaptive: the checkpoint holds it
            or (held and name.startswith(RATES))
        )

    def _faults(self, settings: Settings) -> Iterator[str]:
        before, now = self.before, self.now
        if before["stage"] != now["stage"]:
            yield f"it belongs to stage {before['stage']}, and this is stage {now['stage']}"
            return
        yield from self._faults_of_processes(asked_engines(settings.training))
        for name, then, value in self._differences():
            if self._is_fixed(name, then, value):
                yield f"it was trained with --{name} {then}, and this run has {value}"
        for name in sorted({*before["content"], *now["content"]} - {"training data", "evaluation data", "ptx data"}):
            yield from self._other_content(name)

    def _faults_of_processes(self, engines: list[str]) -> Iterator[str]:
        """Why another number of processes could not read the rows that are left, each once, in steps of as many."""
        if not self._other_processes:
            return
        before, now = (run["options"] for run in (self.before, self.now))
        then, count = self.before["processes"], self.now["processes"]
        reasons = ["DeepSpeed's part of it is in pieces, one a process"] if DEEPSPEED in engines else []
        if self.now["stage"] != "ppo":  # whose rollouts and mini-batches are of all processes together
            wanted, rows = then * _rows(before), count * _rows(now)
            if wanted != rows:
                more, rest = divmod(wanted, count * now["per_device_train_batch_size"])
                fitting = "" if rest else f" with --gradient_accumulation_steps {more}"
                reasons.append(f"its steps have {wanted} rows, and here they have {rows} (keep the {wanted}{fitting})")
            others = [f"--{name} {now[name]}" for name, usual in SAME_ROWS.items() if now[name] not in usual]
            reasons += [f"{', '.join(others)} would give a step other rows"] if others else []
        if reasons:
            yield f"it was trained with {then} processes, and this run has {count}: {', and '.join(reasons)}"

    @property
    def _other_processes(self) -> bool:
        return self.before["processes"] != self.now["processes"]

    def _other_content(self, name: str) -> Iterator[str]:
        then, now = self.before["content"].get(name), self.now["content"].get(name)
        if then != now:
            revisions = f": it was {then}, and this run has {now}" if "@" in f"{then}{now}" else ""
            other = f"the {name} is not the one the run started with{revisions}"
            yield other if now else f"it was trained with a {name}"

    def _changed(self) -> Iterator[tuple[str, list]]:
        if self._other_processes:
            yield "processes", [self.before["processes"], self.now["processes"]]
        for name, then, now in self._differences():
            if not self._is_fixed(name, then, now):
                yield name, [then, now]

    def add(self, name: str, rows: Dataset) -> None:
        """Keep the content of `rows`. Raises UserError where the checkpoint was trained on others."""
        self.now["content"][name] = rows_hash(rows)
        then = (self.before or {}).get("content", {}).get(name)
        if then is not None and then != self.now["content"][name]:
            refuse(self.checkpoint, [f"the {name} has changed"])

    def record(self) -> dict[str, Any]:
        """For a checkpoint: what it is trained with."""
        return self.now | {"changes": self.changes}


def refuse(checkpoint: Path, faults: list[str]) -> None:
    """One message of all that keeps a run from going on from here. Raises UserError."""
    if not faults:
        return
    raise UserError(
        f"--resume_from_checkpoint: {checkpoint.name} cannot be resumed this way: {'; '.join(faults)}. Give what it "
        f"was trained with, or start a new run from its weights: --model_name_or_path {checkpoint} --output_dir with "
        "another folder, and no --resume_from_checkpoint."
    )


def options_of(settings: Settings) -> Iterator[tuple[str, Any]]:
    """(name, value in effect) of every option."""
    for holder in (settings.model, settings.data, settings.training, settings.extra):
        for item in dataclasses.fields(holder) if holder is not None else ():
            if item.init and item.name not in SECRET:
                yield item.name, _plain(getattr(holder, item.name))


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # of an enumeration
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))


def _rows(options: dict[str, Any]) -> int:
    """Of a step, in each process."""
    return options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]


def _named_sources(settings: Settings) -> Iterator[tuple[str, str]]:
    for name in SOURCES:
        holder = settings.extra if hasattr(settings.extra, name) else settings.model
        value = getattr(holder, name, None)
        for at, source in enumerate(value if isinstance(value, list) else [value]):
            if source:
                yield f"--{name}" + (f" {at + 1}" if isinstance(value, list) else ""), str(source)


def _of_source(name: str) -> str:
    """A folder by its content, wherever it stands; a model of the hub by its commit; a function and a word stand for
    themselves."""
    if Path(name).is_dir():
        return model_hash(name)
    return f"{name} ({model_hash(name)})" if split_revision(name)[1] else name


def _steps_asked(settings: Settings, checkpoint: Path) -> Iterator[str]:
    """What is asked for is less than what is done (the same is allowed: nothing is left to train but to finish)."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    args, done, passes = settings.training, state["global_step"], state.get("epoch") or 0.0
    steps = args.max_steps
    if steps <= 0 and getattr(args, "total_episodes", None):
        steps = args.steps(0)
    if 0 < steps < done:
        yield f"it has already taken {done} optimizer steps, and this run asks for {steps}"
    elif steps <= 0 and args.num_train_epochs < passes - 1e-6 and settings.stage != "ppo":
        yield f"it has already made {passes:.4g} passes over the data, and this run asks for {args.num_train_epochs:g}"
    elif steps == done:
        _say(f"{checkpoint.name} is the last of {done} steps: nothing is left to train.")


def _faults_of_old(settings: Settings, checkpoint: Path) -> Iterator[str]:
    """Of a checkpoint without a record of ours, what its files tell."""
    is_adapter = (checkpoint / "adapter_config.json").is_file()
    if is_adapter != settings.model.use_peft:
        held = "an adapter" if is_adapter else "all weights"
        yield f"it contains {held}, and this run has --use_peft {settings.model.use_peft}"


# -- which checkpoint --------------------------------------------------------------------------------------------


def wanted_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; None: there is none yet.

    Raises UserError for one that is not there or damaged, and where all are damaged.
    """
    if wanted.lower() not in ("true", "yes", "last"):
        return _named_checkpoint(folder, Path(wanted))
    checkpoint, wrong = last_whole(folder)
    lost = [f"{path.name} is damaged: {fault}" for path, fault in wrong.items() if not is_cut_off(path)]
    cut = [f"{path.name}: it was not completely written" for path in wrong if is_cut_off(path)]
    if checkpoint is None and lost:
        raise UserError(
            f"--resume_from_checkpoint: {str(folder)!r} has no complete checkpoint left. "
            f"{'; '.join(lost)}. Start over "
            "with another --output_dir, or move this one away."
        )
    passed_over = "; ".join([*lost, *cut])
    if checkpoint is None:
        _say(f"No complete checkpoint in {str(folder)!r} yet: starting from the beginning. {passed_over}".strip())
    elif passed_over:
        _say(f"{passed_over}. Resuming from {checkpoint.name}.")
    return checkpoint


def _named_checkpoint(folder: Path, path: Path) -> Path:
    if not path.is_dir():
        here = [item.name for item in checkpoints(folder)]
        raise UserError(
            f"--resume_from_checkpoint {str(path)!r}: there is no such folder. "
            + (f"{str(folder)!r} has {', '.join(here)}." if here else "Without a value the last checkpoint is used.")
        )
    fault = damage(path)
    if fault is not None:
        raise UserError(
            f"--resume_from_checkpoint {str(path)!r} is not a complete checkpoint: {fault}. Without a value the last "
            "complete one is used."
        )
    return path


def _say(text: str) -> None:
    if is_main_process():
        complain(text)
