"""One line that says how far a run is, how fast it goes and when it ends; the numbers that matter beside it."""

from __future__ import annotations

from rich.progress import Progress, TextColumn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf_kit.progress import progress_bar
from rlhf_kit.terminal.console import Console

# What a reader wants to see while it runs, first to last, and what to call it there; PPO's loss says nothing.
SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "reward": "reward",
    "rewards/truth_reward": "truth",
    "kl": "KL",
    "eval_loss": "eval loss",
    "eval_accuracy": "eval accuracy",
    "eval_reward": "eval reward",
}


def numbers_shown(logs: dict) -> str:
    hidden = {"loss"} if "kl" in logs else set()
    return "  ".join(f"{name} {float(logs[key]):.3g}" for key, name in SHOWN.items() if key in logs.keys() - hidden)


def show_progress(trainer: Trainer) -> None:
    """Show the kit's own progress in place of transformers'."""
    for shown in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shown)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar())


class ProgressBar(TrainerCallback):
    """A bar on a terminal; elsewhere (a file, a notebook's log) one plain line a log."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self.bar = progress_bar(self.console, TextColumn("{task.fields[numbers]}", style="cyan", markup=False))
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, rate="", numbers="")
        self.bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            speed = self.bar.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            self.bar.update(self.task, completed=state.global_step, rate=rate)

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = numbers_shown(logs or {})
        if not shown or not state.is_world_process_zero:
            return
        if self.bar is not None:
            self.bar.update(self.task, numbers=shown)
        else:
            self.console.print(f"step {state.global_step}/{state.max_steps}  {shown}")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
