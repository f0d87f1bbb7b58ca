"""Progress: the numbers a reader wants, on a line where there is no terminal."""

import io

from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlhf_kit.recipes.progress import ProgressBar, numbers_shown


def test_numbers_come_in_order_and_short():
    logs = {"kl": 1.23456, "loss": 0.5, "grad_norm": 9.0, "rewards/truth_reward": -0.25}
    assert numbers_shown(logs) == "loss 0.5  truth -0.25  KL 1.23"
    assert numbers_shown({"grad_norm": 1.0}) == ""


def test_without_a_terminal_a_log_is_a_line(tmp_path):
    stream = io.StringIO()
    bar = ProgressBar(Console(file=stream, force_terminal=False))
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    state, control = TrainerState(global_step=3, max_steps=10), TrainerControl()
    bar.on_train_begin(args, state, control)
    bar.on_log(args, state, control, logs={"loss": 2.0})
    bar.on_train_end(args, state, control)
    assert stream.getvalue() == "step 3/10  loss 2\n"


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(tmp_path):
    stream = io.StringIO()
    bar = ProgressBar(Console(file=stream, force_terminal=True, width=120))
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    state, control = TrainerState(global_step=0, max_steps=4), TrainerControl()
    bar.on_train_begin(args, state, control)
    for state.global_step in range(1, 5):
        bar.on_step_end(args, state, control)
    bar.on_log(args, state, control, logs={"loss": 2.0})
    bar.on_train_end(args, state, control)
    assert "4/4" in stream.getvalue() and "step/s" in stream.getvalue() and "loss 2" in stream.getvalue()
