"""`save_total_limit`: the last whole checkpoint and the best stay, whatever the limit and whatever a kill left."""

import json

import pytest

from rlhf_kit.stages import sft
from rlhf_kit.training.checkpoints import RECORD, STATE, rotate
from tests.tiny_stages import QUIET, run_command


@pytest.fixture
def folder(tmp_path):
    """folder(4, 6, 5): checkpoints in the order of their writing; a negative one was not written to its end."""

    def made(*steps):
        for time, step in enumerate(steps):
            path = tmp_path / f"checkpoint-{abs(step)}"
            path.mkdir()
            files = {STATE: [2, ""]} if step > 0 else None
            (path / RECORD).write_text(json.dumps({"saved": float(time), "files": files}))
            (path / STATE).write_text("{}")
        return tmp_path

    return made


@pytest.mark.parametrize(
    "steps, limit, best, left",
    [
        ((2, 4, 6, 8), 2, None, {6, 8}),
        ((2, 4, 6, 8), 2, 2, {2, 8}),
        ((2, 4, 6, 8), 3, 2, {2, 6, 8}),
        ((2, 4, 6, 8), 1, 2, {2, 8}),  # both are more than the limit
        ((2, 4, 6, 8), 1, 8, {8}),
        ((2, 4, 6, 8), 1, None, {8}),
        ((8, 3, 4), 1, None, {4}),  # a run that went back to an earlier one
        ((8, 3, 4), 2, 8, {8, 4}),
        ((4, -6, 5), 1, None, {5}),  # a kill, and a start that was stopped before it came as far
        ((4, -6, 5), 2, None, {4, 5}),
        ((4, 5), 2, None, {4, 5}),
        ((2, 4, 6), None, None, {2, 4, 6}),
    ],
)
def test_the_oldest_go_but_neither_the_best_nor_the_last(steps, limit, best, left, folder):
    out = folder(*steps)
    rotate(out, limit, best and str(out / f"checkpoint-{best}"))
    assert {int(path.name[11:]) for path in out.iterdir()} == left


def test_a_folder_that_no_run_wrote_stays(folder):
    out = folder(2, 4)
    (out / "checkpoint-3").mkdir()
    (out / "checkpoint-3" / "notes.txt").write_text("mine")
    rotate(out, 1, None)
    assert {path.name for path in out.iterdir()} == {"checkpoint-3", "checkpoint-4"}


@pytest.mark.parametrize("limit, left", [(1, {2, 6}), (2, {2, 6}), (3, {2, 4, 6})])
def test_a_run_keeps_its_best_and_its_last_to_the_end(limit, left, base, demonstrations, tmp_path):
    """The higher the loss the better: the first checkpoint is the best, and the last is there to go on from."""
    out = tmp_path / "out"
    argv = ["--model", base, "--data", demonstrations, "--eval_dataset_name", demonstrations, *QUIET]
    argv += ["--max_steps", 6, "--save_steps", 2, "--eval_strategy", "steps", "--eval_steps", 2]
    argv += ["--learning_rate", 1e-2, "--load_best_model_at_end", "--metric_for_best_model", "eval_loss"]
    argv += ["--save_total_limit", limit, "--output_dir", out, "--greater_is_better", "true"]
    assert run_command(sft, argv) == 0
    assert {int(path.name[11:]) for path in out.glob("checkpoint-*")} == left
    state = json.loads((out / "checkpoint-6" / STATE).read_text())
    assert state["best_global_step"] == 2


def test_what_a_kill_left_half_written_is_not_the_last(base, demonstrations, ranks, tmp_path):
    """It is of step 6; the next start goes on from 4 and is stopped when 5 is saved."""
    out = tmp_path / "out"
    argv = ["--model", base, "--data", demonstrations, "--output_dir", out, *QUIET, "--use_cpu", "--max_steps", 6]
    assert ranks("sft", [*argv, "--save_steps", 2, "--save_total_limit", 9], 1)[0] == [0]
    record = json.loads((out / "checkpoint-6" / RECORD).read_text())
    (out / "checkpoint-6" / RECORD).write_text(json.dumps(record | {"files": None}))
    more = ["--save_steps", 1, "--save_total_limit", 1, "--resume_from_checkpoint"]
    statuses, said = ranks("sft", [*argv, *more], 1, sigterm=("on_log", 5, 0))
    assert statuses == [143] and "Resuming from checkpoint-4." in said and "checkpoint-5 is saved" in said
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-5"]
    assert ranks("sft", [*argv, *more], 1)[0] == [0]
