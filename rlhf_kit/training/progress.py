"""The progress of a training run, and the numbers that matter beside it."""

from __future__ import annotations

from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf_kit.progress import Progress
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
    """A trainer's steps and its last log as the kit's progress."""

    def __init__(self, console: Console | None = None):
        self.console = console
        self.progress: Progress | None = None  # while it trains

    def _at(self, state: TrainerState) -> Progress:
        options = {"done": state.global_step, "numbers": True}
        return Progress(state.max_steps, "step", state.is_world_process_zero, self.console, **options)

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = self._at(state).start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress is not None:
            self.progress.reach(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if shown := numbers_shown(logs or {}):
            (self.progress or self._at(state)).tell(shown)

    def on_train_end(self, args, state, control, **kwargs):
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
