"""SIGTERM while a stage trains: it ends with a checkpoint of the step it was in, and goes on as if it never had."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.cli import main
from rlhf_kit.stages import launching
from rlhf_kit.stages.arguments import RunArguments
from rlhf_kit.terminal import interrupts
from rlhf_kit.terminal.interrupts import Grace, Terminated
from tests.tiny_stages import PPO, QUIET


@pytest.fixture
def argv(base, texts, demonstrations, ranked):
    """argv("sft"): 8 steps that are logged and, but for their end, not saved; of PPO four rollouts of two steps."""
    stages = {
        "pretrain": ["--dataset_name", texts, "--block_size", 16],
        "sft": ["--dataset_name", demonstrations, "--gradient_accumulation_steps", 2],
        "reward": ["--dataset_name", ranked],
        "ppo": ["--dataset_name", ranked, *PPO, "--total_episodes", 16, "--reward_scaling", "--kl_target", 1],
    }

    def command(stage):
        steps = [] if stage == "ppo" else ["--max_steps", 8]
        options = ["--model", base, *stages[stage], *QUIET, *steps, "--save_steps", 100, "--learning_rate", 1e-2]
        return [str(word) for word in [*options, "--use_cpu"]]

    return command


def left(folder):
    """What a run left: the weights of its model, and its metrics but for the seconds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "runtime", "per_second")
    rows = [
        {name: x for name, x in row.items() if not name.endswith(timed) and not name.startswith("seconds/")}
        for row in rows
    ]
    return load_file(folder / "model.safetensors"), rows


def assert_same(one, other):
    (weights, rows), (others, logged) = left(one), left(other)
    assert rows == logged
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    "stage, processes, asked, step",
    [
        ("pretrain", 1, ("on_log", 3, 0), 4),
        ("reward", 1, ("on_log", 3, 0), 4),
        ("sft", 1, ("on_log", 3, 0), 4),
        ("sft", 2, ("on_log", 3, 1), 4),  # the other process is not told
        ("ppo", 1, ("on_log", 2, 0), 2),  # the next rollout is collected, and not trained on
        ("ppo", 2, ("on_log", 2, 1), 2),
        ("ppo", 2, ("on_step_begin", 2, 1), 4),  # in the first of its two steps
    ],
)
def test_a_stopped_run_goes_on_to_the_end_of_an_unbroken_one(stage, processes, asked, step, argv, ranks, tmp_path):
    """asked: at which event after which step, and which process alone; step: where the run stops."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    statuses, said = ranks(stage, [*argv(stage), "--output_dir", whole], processes)
    assert statuses == [0] * processes, said
    given = [*argv(stage), "--output_dir", out]
    statuses, said = ranks(stage, given, processes, sigterm=asked)
    assert statuses == [143] * processes, said
    assert (
        "Stopped by SIGTERM 收到 SIGTERM，已停止. checkpoint-" in said
        and f"checkpoint-{step} is saved" in said
        and "Traceback" not in said
    )
    assert said.count("--resume_from_checkpoint\n") == 1
    left_behind = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert left_behind - {"completions"} == {f"checkpoint-{step}", "metrics.jsonl"}  # no model, no card, no run.json
    statuses, said = ranks(stage, [*given, "--resume_from_checkpoint"], processes)
    assert statuses == [0] * processes, said
    assert json.loads((out / "run.json").read_text())["resumed_from"] == f"checkpoint-{step}"
    assert_same(whole, out)


@pytest.mark.parametrize("step, evaluated", [(2, []), (5, [6])])  # in an epoch of 6 steps, and in its last one
def test_what_an_epoch_ends_with_is_done_once(step, evaluated, argv, demonstrations, ranks, tmp_path):
    """Epochs end with an evaluation and a checkpoint; a stop inside one has neither, nor is the best loaded."""
    more = ["--eval_dataset_name", demonstrations, "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    given = [*argv("sft"), *more, "--gradient_accumulation_steps", 1, "--load_best_model_at_end"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert ranks("sft", [*given, "--output_dir", whole], 1)[0] == [0]
    given += ["--output_dir", out]
    statuses, said = ranks("sft", given, 1, sigterm=("on_log", step, 0))
    assert statuses == [143] and f"checkpoint-{step + 1} is saved" in said
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_loss" in row] == evaluated
    assert not any("train_loss" in row for row in rows)
    assert ranks("sft", [*given, "--resume_from_checkpoint"], 1)[0] == [0]
    assert_same(whole, out)


def test_where_the_best_alone_are_saved_the_last_is_too(argv, demonstrations, ranks, tmp_path):
    """The higher the loss the better: it falls, and the second epoch is not the best."""
    more = ["--eval_dataset_name", demonstrations, "--eval_strategy", "epoch", "--save_strategy", "best"]
    more += ["--metric_for_best_model", "eval_loss", "--greater_is_better", "true", "--gradient_accumulation_steps", 1]
    given = [*argv("sft"), *more, "--max_steps", 18]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert ranks("sft", [*given, "--output_dir", whole], 1)[0] == [0]
    given += ["--output_dir", out]
    statuses, said = ranks("sft", given, 1, sigterm=("on_log", 11, 0))
    assert statuses == [143] and "checkpoint-12 is saved" in said
    assert ranks("sft", [*given, "--resume_from_checkpoint"], 1)[0] == [0]
    assert_same(whole, out)
    assert (whole / "checkpoint-6").is_dir() and not (whole / "checkpoint-12").exists()


def test_in_its_last_step_it_saves_and_the_next_start_ends_it(argv, ranks, tmp_path):
    given = [*argv("sft"), "--output_dir", tmp_path / "out"]
    statuses, said = ranks("sft", given, 1, sigterm=("on_log", 7, 0))
    assert statuses == [143] and "checkpoint-8 is saved" in said
    statuses, said = ranks("sft", [*given, "--resume_from_checkpoint"], 1)
    assert statuses == [0] and "checkpoint-8 is the last of 8 steps: nothing is left to train." in said


@pytest.mark.parametrize("option", [["--save_strategy", "no"], ["--save_only_model"]], ids=str)
def test_without_checkpoints_to_go_on_from_it_ends_at_once(option, argv, ranks, tmp_path):
    statuses, said = ranks(
        "sft", [*argv("sft"), *option, "--output_dir", tmp_path / "out"], 1, sigterm=("on_log", 3, 0)
    )
    assert statuses == [143] and "Nothing has been saved yet" in said
    assert not [*(tmp_path / "out").glob("checkpoint-*")]


def test_under_fsdp2_too(argv, ranks, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert ranks("sft", [*argv("sft"), "--output_dir", whole], pieces=True)[0] == [0, 0]
    given = [*argv("sft"), "--output_dir", out]
    assert ranks("sft", given, sigterm=("on_log", 3, 1), pieces=True)[0] == [143, 143]
    assert ranks("sft", [*given, "--resume_from_checkpoint"], pieces=True)[0] == [0, 0]
    assert json.loads((out / "run.json").read_text())["engine"]["name"] == "FSDP2"
    assert_same(whole, out)


# --- the time it has ------------------------------------------------------------------------------------------------


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def wait():
    signal.sigtimedwait([], 60)  # the handler ends it


def test_before_it_begins_and_when_its_time_is_over_it_ends_at_once(capfd):
    kept = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), Grace(60):
        ask()
    with pytest.raises(Terminated), Grace(0.1) as grace:
        grace.begin()
        ask()
        assert grace.is_asked
        wait()
    assert signal.getsignal(signal.SIGTERM) is kept
    assert "within 0.1 s" in capfd.readouterr().err


def test_another_signal_ends_it_at_once_but_for_an_echo_of_the_first(monkeypatch):
    with Grace(60) as grace:
        grace.begin()
        ask()
        ask()
        monkeypatch.setattr(interrupts, "ECHO", 0.0)
        with pytest.raises(Terminated):
            ask()


def test_a_data_loaders_worker_works_on(monkeypatch):
    """However often it is told; should its run leave it behind, a clock ends it."""
    monkeypatch.setattr(interrupts, "ECHO", 0.0)
    with Grace(60) as grace:
        grace.begin()
        child = os.fork()
        if not child:
            try:
                ask()
                ask()
                os._exit(3 if signal.alarm(0) > 50 else 5)
            except Terminated:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3 and not grace.is_asked


def test_a_launcher_waits_longer_than_its_processes(monkeypatch):
    monkeypatch.delenv(launching.SHUTDOWN, raising=False)
    for seconds, text in ((None, str(int(RunArguments.stop_within) + 10)), (24.5, "35")):
        start = launching.launcher("sft", [], "cpu-2", None, seconds)
        assert start.args[1][launching.SHUTDOWN] == text
    monkeypatch.setenv(launching.SHUTDOWN, "7")
    assert launching.launcher("sft", [], "cpu-2", None, 24.5).args[1][launching.SHUTDOWN] == "7"


def test_transformers_own_way_is_refused(argv, tmp_path, capsys):
    assert main(["sft", *argv("sft"), "--enable_jit_checkpoint", "--output_dir", str(tmp_path / "out")]) == 2
    assert "enable_jit_checkpoint saves at any moment" in capsys.readouterr().err and not (tmp_path / "out").exists()
