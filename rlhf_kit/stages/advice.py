"""What to type next: after the end the next stage, after Ctrl-C a command that resumes or starts again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from rlhf_kit.stages.arguments import Settings
from rlhf_kit.training.checkpoints import checkpoints, is_cut_off, record

NEXT = {  # after each stage; what is in capitals is the user's to give
    "pretrain": "rlhf-kit sft --model_name_or_path {folder} --dataset_name DEMONSTRATIONS --output_dir FOLDER",
    "mlm": "rlhf-kit eval extractive --model_name_or_path {folder} --train_dataset_name SQUAD --dataset_name SQUAD "
    "--scorer squad --output_dir FOLDER",
    "sft": "rlhf-kit reward --model_name_or_path {folder} --dataset_name RANKINGS --output_dir FOLDER",
    "reward": "rlhf-kit ppo --model_name_or_path {model} --reward_funcs {folder} --dataset_name PROMPTS "
    "--output_dir FOLDER",
    "ppo": "rlhf-kit doctor {folder}",
}
MEASURE = "rlhf-kit eval suite --models {folder} --output_dir FOLDER"  # after any other


def after_end(settings: Settings) -> str:
    """One line for the terminal: where the model is, and what comes next."""
    folder, model = str(settings.training.output_dir), str(settings.model.model_name_or_path)
    following = NEXT.get(settings.stage, MEASURE).format(folder=shlex.quote(folder), model=shlex.quote(model))
    return f"The model is in 模型在 {folder}. Next 接下來: {following}"


def after_interrupt(stage: str, argv: Sequence[str], settings: Settings | None, began: float, as_script: bool) -> str:
    """One line for the terminal. `settings` None: the options had not been read; `began`: when the run did."""
    command = started_by(argv) if as_script else ["rlhf-kit", stage]
    saved = None if settings is None else last_saved(Path(settings.training.output_dir), began)
    if saved is not None:
        again = without(argv, "overwrite_output_dir", "resume_from_checkpoint")
        if settings.run.overwrite_output_dir and len(again) == len(without(argv, "resume_from_checkpoint")):
            again.append("--no_overwrite_output_dir")  # its YAML gives it
        again.append("--resume_from_checkpoint")
        return f"{saved.name} is saved 已存檔. To resume 接續訓練: {shlex.join([*command, *again])}"
    again = list(argv)
    if settings is not None and not {"overwrite_output_dir", "resume_from_checkpoint"} & settings.given:
        again.append("--resume_from_checkpoint")  # what was logged is this run's; it begins at the beginning
    return f"Nothing has been saved yet 還沒有存檔. To start over 重新開始: {shlex.join([*command, *again])}"


def last_saved(folder: Path, began: float) -> Path | None:
    """The last checkpoint that this run has finished writing: one of a run before, about to be replaced, is none."""
    saved = [path for path in checkpoints(folder) if not is_cut_off(path) and record(path).get("saved", 0.0) >= began]
    return saved[-1] if saved else None


def without(argv: Sequence[str], *names: str) -> list[str]:
    """A command line without these options and their values, however they are spelt."""
    kept, dropping = [], False
    for token in argv:
        if token.startswith("--"):
            dropping = token[2:].partition("=")[0].replace("-", "_").removeprefix("no_") in names
        if not dropping:
            kept.append(token)
    return kept


def started_by(argv: Sequence[str]) -> list[str]:
    """How a recipe file was started, up to its options: by accelerate, torchrun or python.

    A launcher is among the processes above this one; its command line ends with ours.
    """
    for parent in psutil.Process().parents()[:3]:
        try:
            line = parent.cmdline()
        except psutil.Error:
            continue
        if argv and line[-len(argv) :] == list(argv):
            line = line[: -len(argv)]
            tool = Path(line[1]).name if len(line) > 1 else ""
            return [tool, *line[2:]] if tool in ("accelerate", "torchrun") else ["python", *line[1:]]
    return ["python", sys.argv[0]]
