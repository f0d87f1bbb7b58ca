"""A run's output folder: what may be written where, where to resume from, and its `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import MOST_JSON, parse_json, read_bytes
from rlhf_kit.launched import process_count
from rlhf_kit.models.weights import adapter_config
from rlhf_kit.stages.arguments import Settings, given_values
from rlhf_kit.stages.resume import wanted_checkpoint
from rlhf_kit.storage import RUN, Folder, listed, replace
from rlhf_kit.terminal import complain
from rlhf_kit.training.checkpoints import WEIGHTS, checkpoints, is_cut_off, last_whole

METRICS, RECORD, SAVING = "metrics.jsonl", "run.json", ".saving"
CHECKPOINT = r"checkpoint-\d+"
FUNCTION = r"([\w.]+):[A-Za-z_]\w*"  # a reward function by its module
# What a run may write into its folder: none of these may be there before it, unless a run is recorded to have made it.
RUN_FILES = re.compile(
    r"checkpoint-\d+|run\.json|metrics\.jsonl|config\.json|generation_config\.json|training_args\.bin|README\.md"
    r"|tokenizer(_config)?\.json|.*\.(bpe\.)?model|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)"
    r"|merges\.txt|chat_template\.jinja|adapter_config\.json|reward_config\.json|adapter_base|trainer_state\.json"
    r"|value\.safetensors|ppo_state\.json|ema|completions|\.saving|" + WEIGHTS.pattern
)


@dataclass
class Output:
    """Where a run writes, and the checkpoint it goes on from (None: from the beginning)."""

    folder: Path
    checkpoint: Path | None
    started: float
    may_replace: bool = False  # the run that is there is given up, or had saved nothing to go on from

    @property
    def files(self) -> Folder:
        return Folder(self.folder, RUN)

    def open(self, settings: Settings) -> None:
        """Make the folder ready, and hold it: called by every process when everything has been validated.

        When `settings.closing` ends, what the run has written is recorded as it then is, and the folder is free again.
        Raises UserError where another run holds it, or has come in between.
        """
        from_main_process(settings, lambda: self._open(settings))

    def _open(self, settings: Settings) -> None:
        files = self.files
        stale = files.lock()
        settings.closing.callback(files.unlock)
        if stale is not None:
            holder = f"process {stale['pid']}, since {stale['since']}"
            complain(
                f"{str(self.folder)!r} was locked by a run that has ended ({holder}); this run takes over the lock."
            )
        check_contents(self.folder, self.checkpoint, self.may_replace)
        if self.checkpoint is None:
            files.clear()
        else:  # what it goes on with becomes its own, though a run of an earlier version had no record
            files.settle(METRICS, *(path.name for path in checkpoints(self.folder)))
        files.remove(RECORD, SAVING)  # from here on the folder holds an unfinished run
        files.claim(METRICS, SAVING)
        settings.closing.callback(self._close)

    def _close(self) -> None:
        """Half a checkpoint goes, to make room; the rest is recorded, where the disk has room for that."""
        with suppress(OSError):
            for checkpoint in checkpoints(self.folder):
                if is_cut_off(checkpoint):
                    self.files.remove(checkpoint.name)
            self.files.settle_all()


def check_output(settings: Settings) -> Output:
    """Look at `output_dir` without touching it. Raises UserError where what is not this run's would be replaced."""
    wanted = settings.training.resume_from_checkpoint
    resume = wanted is not None and str(wanted).lower() not in ("false", "no", "")
    may_replace = settings.run.overwrite_output_dir or resume
    folder = Path(settings.training.output_dir)
    checkpoint = from_main_process(settings, lambda: _look(settings, folder, str(wanted) if resume else None))
    # The trainer would take any other value for the name of a checkpoint.
    settings.training.resume_from_checkpoint = None if checkpoint is None else str(checkpoint)
    return Output(folder, checkpoint, time.time(), may_replace)


def _look(settings: Settings, folder: Path, wanted: str | None) -> Path | None:
    """The checkpoint to go on from, if any; `wanted`: of `--resume_from_checkpoint`. Raises UserError."""
    overwrite, checkpoint = settings.run.overwrite_output_dir, None
    files = Folder(folder, RUN)
    files.check("--output_dir")
    files.check_lock()
    if wanted is not None:
        if overwrite:
            raise UserError(
                "--overwrite_output_dir starts over and --resume_from_checkpoint continues; give only one of them."
            )
        checkpoint = wanted_checkpoint(folder, wanted)
    if overwrite:
        refuse_own_sources(settings, folder)
    check_contents(folder, checkpoint, overwrite or wanted is not None)
    return checkpoint


def say_unwritten(folder: Path, fault: str) -> str:
    """That a run could not write, what of it is saved, and how to go on."""
    checkpoint, _ = last_whole(folder)
    saved = "Nothing had been saved yet" if checkpoint is None else f"{checkpoint.name} was saved before and is whole"
    again = "start over with --overwrite_output_dir" if checkpoint is None else "resume with --resume_from_checkpoint"
    return f"{str(folder)!r} cannot be written: {fault}. {saved}. Free some space or fix the folder, then {again}."


def from_main_process(settings: Settings, work: Callable[[], Path | None]) -> Path | None:
    """What `work` gives on the main process, or refuses, on every process: they go on alike or not at all."""
    if process_count() == 1:
        return work()
    state, outcome = PartialState(cpu=settings.training.use_cpu), [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except (UserError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def check_contents(folder: Path, checkpoint: Path | None, may_replace: bool) -> None:
    """Raises UserError for another run, and for what would be replaced and no run is recorded to have made.

    `may_replace`: the run that is there is given up, or had saved nothing to go on from.
    """
    files = Folder(folder, RUN)
    there = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    held = [name for name in there if RUN_FILES.fullmatch(name)]
    written = [*held, *files.entries()]
    if checkpoint is not None and checkpoint.resolve().parent == folder.resolve():  # the run that goes on
        written = [name for name in written if name != METRICS and not re.match(rf"{CHECKPOINT}(/|$)", name)]
    elif not may_replace and _holds_a_run(folder, held):
        replaced = "replace it with --overwrite_output_dir, or give another folder."
        if files.foreign(held):
            replaced = (
                "or give another folder. --overwrite_output_dir would not replace it: the folder has no record that a "
                "run of this version wrote it (or it was changed since)."
            )
        marks = ", ".join(name for name in held if _marks_a_run(name))
        raise UserError(
            f"--output_dir {str(folder)!r} holds another run ({marks}). Resume it with --resume_from_checkpoint, "
            f"{replaced}"
        )
    foreign = files.foreign(written)
    if foreign:
        raise UserError(
            f"--output_dir {str(folder)!r} contains files with names that a run writes, but no run is "
            "recorded to have "
            f"written them as they are now: {listed(foreign)}. Nothing was removed or replaced. Move them away, or "
            "give another folder."
        )


def _holds_a_run(folder: Path, held: list[str]) -> bool:
    """Whether something is left of a run: one that failed before it had trained or saved anything is none."""
    return any(_marks_a_run(name) and (name != METRICS or _has_trained(folder / METRICS)) for name in held)


def _has_trained(metrics: Path) -> bool:
    """Whether there are rows of a training step, or anything else than rows."""
    text = read_bytes(metrics, MOST_JSON).decode("utf-8", errors="replace")
    rows = [_row(line) for line in text.splitlines()]
    return any(row is None or row["step"] for row in rows)


# -- what a run reads ------------------------------------------------------------------------------------------------


def refuse_own_sources(settings: Settings, folder: Path) -> None:
    """Raises UserError where removing a run would remove what this one reads: its model, data, rewards."""
    inside = [f"--{name} {source!r}" for name, source in sources(settings) if _lies_in(source, folder)]
    if inside:
        raise UserError(
            f"--overwrite_output_dir: --output_dir {str(folder)!r} contains what this run reads "
            f"({', '.join(inside)}). "
            "Give another --output_dir."
        )


def sources(settings: Settings) -> Iterator[tuple[str, str]]:
    """(option, path) of all that the options name, and of the models below the adapters among them."""
    for name, value in given_values(settings).items():
        for source in value if isinstance(value, list | tuple) else [value]:
            if isinstance(source, str | Path) and str(source) and name not in ("output_dir", "logging_dir"):
                function = re.fullmatch(FUNCTION, str(source))
                source = f"{function[1].replace('.', '/')}.py" if function else str(source)
                yield from ((name, path) for path in [source, *_bases(source)])


def _bases(adapter: str) -> Iterator[str]:
    with suppress(UserError):  # told where it is loaded
        while Path(adapter).is_dir() and (config := adapter_config("an adapter", adapter)) is not None:
            adapter = config.base_model_name_or_path
            yield adapter


def _lies_in(source: str, folder: Path) -> bool:
    """Whether a file or folder stands in `folder` or is it, under whatever spelling and behind whatever links."""
    path = Path(source).expanduser()
    ways = {Path(os.path.abspath(path)), path.resolve()} if path.exists() else set()
    return any(way.is_relative_to(home) for way in ways for home in (Path(os.path.abspath(folder)), folder.resolve()))


def _marks_a_run(name: str) -> bool:
    return bool(re.fullmatch(rf"{CHECKPOINT}|run\.json|metrics\.jsonl", name) or WEIGHTS.fullmatch(name))


class CheckpointRecord(TrainerCallback):
    """Records each checkpoint as the run's own: before it is written, and again when it is whole."""

    def __init__(self, files: Folder):
        self.files = files

    def _claim(self, args, state, control, **kwargs):
        at_best = str(getattr(args.save_strategy, "value", args.save_strategy)) == "best"  # seen when it is too late
        if state.is_world_process_zero and (control.should_save or at_best):
            self.files.claim(f"checkpoint-{state.global_step}")

    on_step_end = on_epoch_end = on_evaluate = _claim

    def on_save(self, args, state, control, **kwargs):
        if args.world_size > 1:
            PartialState().wait_for_everyone()  # each process has written its part
        if state.is_world_process_zero:
            self.files.settle(f"checkpoint-{state.global_step}")


class MetricsFile(TrainerCallback, ExportableState):
    """Appends every log to `metrics.jsonl` as {"step", "time" (seconds of this run), ...numbers}."""

    def __init__(self, folder: Path):
        self.path = folder / METRICS
        self.start = time.time()
        self.rows = 0

    def state(self) -> dict[str, dict]:
        """What a checkpoint keeps: how many rows were written before it."""
        return {"args": {}, "attributes": {"rows": self.rows}}

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        kept = []
        known = state.stateful_callbacks.setdefault("MetricsFile", {"attributes": {}})["attributes"].get("rows")
        if self.path.is_file() and state.global_step:  # what came after the checkpoint will be logged again
            rows = [_row(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            kept = [row for row in rows if row is not None and row["step"] <= state.global_step]
            kept = kept[:known]
        self.rows = len(kept)
        self.start = time.time() - (kept[-1]["time"] if kept else 0.0)
        replace(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, "time": round(time.time() - self.start, 3), **numbers(logs)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows += 1


def _row(line: str) -> dict | None:
    try:
        row = parse_json(line)
    except ValueError:  # cut off by a kill
        return None
    return row if isinstance(row, dict) and "step" in row and "time" in row else None


def numbers(values: dict[str, Any]) -> dict[str, float | int | None]:
    """The numbers among `values`; what is not finite becomes None (JSON has no NaN)."""
    result = {}
    for key, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            continue
        number = value if isinstance(value, int) else float(value)
        result[key] = number if math.isfinite(number) else None
    return result
