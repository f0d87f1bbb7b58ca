"""Progress: how far and how fast, with a run's numbers: in lines without a terminal, else whole on 80 columns."""

import io
import os
import re

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf_kit.progress import Progress
from rlhf_kit.terminal.console import Console
from rlhf_kit.training.progress import ProgressBar, numbers_shown, show_progress


def test_progress_is_told_after_two_seconds_and_then_every_ten():
    now = [0.0]
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=False, width=100, record=True)
        with Progress(100, "lists", console=console, clock=lambda: now[0]) as progress:
            for _ in range(26):
                now[0] += 1
                progress.add(2)
        told = console.export_text().splitlines()
    assert told == [
        "4/100 lists  2.0 lists/s  48 s left",
        "24/100 lists  2.0 lists/s  38 s left",
        "44/100 lists  2.0 lists/s  28 s left",
    ]


def test_progress_is_a_bar_on_a_terminal_and_silent_elsewhere():
    now = [0.0]
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=100, record=True)
        for shown, step in ((True, 0.1), (False, 5.0), (True, 5.0)):
            with Progress(4, "lists", shown, console, lambda: now[0]) as progress:
                now[0] += step
                progress.add(2)
            assert (progress.bar is not None) == (shown and step > 2)
        assert "2/4" in console.export_text()


def test_a_resumed_run_does_not_take_its_earlier_steps_for_speed():
    """50 of 100 were done; 5 more in 10 seconds are 0.5 a second."""
    now, stream = [0.0], io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with Progress(100, "step", True, console, lambda: now[0], done=50, numbers=True) as progress:
        progress.reach(50)  # no time has gone by
        now[0] = 10.0
        progress.reach(55)
        assert progress.bar.tasks[0].fields["rate"] == "0.5/s" and progress.bar.tasks[0].completed == 55
    assert "55/100" in stream.getvalue()


def test_numbers_come_in_order_and_short():
    logs = {"kl": 1.23456, "loss": 0.5, "grad_norm": 9.0, "rewards/truth_reward": -0.25}
    assert numbers_shown(logs) == "truth -0.25  KL 1.23"  # the loss of PPO tells nothing
    assert numbers_shown({"loss": 0.5, "accuracy": 0.75}) == "loss 0.5  accuracy 0.75"
    assert numbers_shown({"grad_norm": 1.0}) == ""


def test_without_a_terminal_a_log_is_a_line(tmp_path):
    stream = io.StringIO()
    bar = ProgressBar(Console(file=stream, force_terminal=False))
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    state, control = TrainerState(global_step=3, max_steps=10), TrainerControl()
    bar.on_train_begin(args, state, control)
    bar.on_log(args, state, control, logs={"loss": 2.0})
    bar.on_train_end(args, state, control)
    bar.on_log(args, state, control, logs={"eval_loss": 1.5})  # evaluated after training
    state.is_world_process_zero = False
    bar.on_log(args, state, control, logs={"eval_loss": 1.5})
    assert stream.getvalue() == "step 3/10  loss 2\nstep 3/10  eval loss 1.5\n"


def test_the_kits_bar_is_the_only_one(tmp_path):
    trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    show_progress(trainer)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert ProgressBar in kinds and not {PrinterCallback, ProgressCallback} & {*kinds}


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_of_ppo_is_whole(width, tmp_path):
    stream = io.StringIO()
    bar = ProgressBar(Console(file=stream, force_terminal=True, width=width))
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    state, control = TrainerState(global_step=995, max_steps=1500), TrainerControl()
    bar.on_train_begin(args, state, control)
    for state.global_step in range(996, 1001):
        bar.on_step_end(args, state, control)
    logs = {"loss": 0.0123, "reward": -0.123, "rewards/truth_reward": -0.456, "kl": 12.34}
    bar.on_log(args, state, control, logs=logs)
    bar.on_train_end(args, state, control)
    shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue()).strip())[-1]
    assert re.search(r"1000/1500 [\d.]+/s .*left (-:--:--|[\d:]+) reward -0\.123  truth -0\.456  KL 12\.3", shown), (
        shown
    )
    assert len(shown.rstrip()) <= width and "…" not in shown
