"""A run's output folder: what may be written where, where to go on from, and its `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rlhf_kit.errors import UserError
from rlhf_kit.recipes.arguments import Settings, distributed_rank

METRICS, RECORD, SAVING = "metrics.jsonl", "run.json", ".saving"
WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model)([-.].*)?\.(safetensors|bin|index\.json)|.*\.index\.json")
# What a run may write into its folder; --overwrite_output_dir removes these and nothing else.
RUN_FILES = re.compile(
    r"checkpoint-\d+|run\.json|metrics\.jsonl|config\.json|generation_config\.json|training_args\.bin|README\.md"
    r"|tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|chat_template\.jinja|adapter_config\.json|reward_config\.json|trainer_state\.json|value\.safetensors|ppo_state\.json|ema|completions"
    r"|\.saving|runs|" + WEIGHTS.pattern
)


@dataclass
class Output:
    """Where a run writes, and the checkpoint it goes on from (None: from the beginning)."""

    folder: Path
    checkpoint: Path | None
    started: float

    def open(self, settings: Settings) -> None:
        """Make the folder ready: called when everything has been validated, by the main process alone."""
        if distributed_rank() != 0:
            return
        if settings.run.overwrite_output_dir and self.checkpoint is None:
            _remove_run(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RECORD).unlink(missing_ok=True)  # from here on the folder holds an unfinished run
        shutil.rmtree(self.folder / SAVING, ignore_errors=True)


def check_output(settings: Settings) -> Output:
    """Look at `output_dir` without touching it. Raises UserError where another run would be mixed with this one."""
    folder = Path(settings.training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {str(folder)!r} is a file; give a folder.")
    wanted = settings.training.resume_from_checkpoint
    resume = wanted is not None and str(wanted).lower() not in ("false", "no", "")
    checkpoint = None
    if resume:
        if settings.run.overwrite_output_dir:
            raise UserError(
                "--overwrite_output_dir starts anew and --resume_from_checkpoint goes on: give one of them."
            )
        checkpoint = _wanted_checkpoint(folder, str(wanted))
    elif folder.is_dir() and not settings.run.overwrite_output_dir:
        held = sorted(item.name for item in folder.iterdir() if _marks_a_run(item))
        if held:
            raise UserError(
                f"--output_dir {str(folder)!r} holds another run ({', '.join(held[:4])}). Go on with it by "
                "--resume_from_checkpoint, replace it by --overwrite_output_dir, or give another folder."
            )
    if checkpoint is None:
        # The trainer would take any other value for the name of a checkpoint.
        settings.training.resume_from_checkpoint = None
    return Output(folder, checkpoint, time.time())


def _wanted_checkpoint(folder: Path, wanted: str) -> Path | None:
    if wanted.lower() in ("true", "yes", "last"):
        found = last_complete_checkpoint(folder)
        if found is None and distributed_rank() == 0:
            print(f"No complete checkpoint in {str(folder)!r} yet: starting from the beginning.", file=sys.stderr)  # noqa: T201
        return found
    path = Path(wanted)
    if not path.is_dir():
        here = [item.name for item in checkpoints(folder)]
        raise UserError(
            f"--resume_from_checkpoint {wanted!r}: there is no such folder. "
            + (f"{str(folder)!r} has {', '.join(here)}." if here else "Without a value it takes the last checkpoint.")
        )
    if not is_complete(path):
        raise UserError(f"--resume_from_checkpoint {wanted!r} is not a complete checkpoint (its writing was cut off).")
    return path


def checkpoints(folder: Path) -> list[Path]:
    """`checkpoint-N` folders, oldest first."""
    found = folder.glob("checkpoint-*") if folder.is_dir() else []
    numbered = [path for path in found if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def is_complete(checkpoint: Path) -> bool:
    """The trainer writes `trainer_state.json` last: a checkpoint whose state reads and that has weights is whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return any(
        WEIGHTS.fullmatch(item.name) or item.name.startswith("pytorch_model_fsdp") for item in checkpoint.iterdir()
    )


def last_complete_checkpoint(folder: Path) -> Path | None:
    return next((path for path in reversed(checkpoints(folder)) if is_complete(path)), None)


def _marks_a_run(item: Path) -> bool:
    return bool(
        re.fullmatch(r"checkpoint-\d+|run\.json|metrics\.jsonl|\.saving", item.name) or WEIGHTS.fullmatch(item.name)
    )


def _remove_run(folder: Path) -> None:
    for item in folder.iterdir() if folder.is_dir() else ():
        if not RUN_FILES.fullmatch(item.name):
            continue  # not ours: a user's notes, a report
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl` as {"step", "time" (seconds of this run), ...numbers}."""

    def __init__(self, folder: Path):
        self.path = folder / METRICS
        self.start = time.time()

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        kept = []
        if self.path.is_file():  # after a resume: what came after the checkpoint will be logged again
            rows = [_row(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            kept = [row for row in rows if row is not None and row["step"] <= state.global_step and state.global_step]
        self.start = time.time() - (kept[-1]["time"] if kept else 0.0)
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, "time": round(time.time() - self.start, 3), **numbers(logs)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
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


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
