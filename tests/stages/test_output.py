import json
from types import SimpleNamespace

import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.stages.arguments import DataArguments, ModelArguments, RunArguments, Settings
from rlhf_kit.stages.output import MetricsFile, check_output, numbers
from rlhf_kit.storage import RUN, Folder
from rlhf_kit.training.checkpoints import begin, seal


def asked(folder, resume=None, overwrite=False, **data):
    training = SimpleNamespace(output_dir=str(folder), resume_from_checkpoint=resume)
    run, given = RunArguments(overwrite_output_dir=overwrite), frozenset(data)
    return Settings("sft", ModelArguments(), DataArguments(**data), run, training, given=given)


def checkpoint(folder, number, whole=True):
    path = folder / f"checkpoint-{number}"
    begin(path, None)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (path / name).write_bytes(b"x")
    if whole:
        seal(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "metrics.jsonl",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "adapter_model.safetensors",
    ],
)
def test_a_folder_with_another_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        UserError, match=f"holds another run .{name}.*--resume_from_checkpoint.*--overwrite_output_dir"
    ):
        check_output(asked(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    assert check_output(asked(tmp_path)).checkpoint is None


def test_a_checkpoint_begun_again_holds_nothing_of_the_earlier_one(tmp_path):
    for whole in (True, False):
        path = checkpoint(tmp_path, 3, whole)
        (path / "global_step3").mkdir(exist_ok=True)
        (path / "global_step3" / "shard.pt").write_bytes(b"x")
        if whole:
            seal(path)
            (path / "notes.txt").write_text("mine")  # since it was sealed
        begin(path, None)
        left = sorted(found.name for found in path.rglob("*") if found.is_file())
        assert left == ["checkpoint.json", *["notes.txt"] * whole], whole
    mine = tmp_path / "checkpoint-4" / "README.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    begin(mine.parent, None)
    assert mine.exists()  # nothing says that a run wrote it


def test_checkpoints_alone_are_a_run_too(tmp_path):
    checkpoint(tmp_path, 3)
    with pytest.raises(UserError, match="checkpoint-3"):
        check_output(asked(tmp_path))


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    files = Folder(tmp_path, RUN)
    checkpoint(tmp_path, 3)
    files.settle("checkpoint-3")
    for name in ("run.json", "metrics.jsonl", "model.safetensors", "config.json", "chat_template.jinja"):
        files.write(name, "{}")
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    settings = asked(tmp_path, overwrite=True)
    output = check_output(settings)
    assert (tmp_path / "run.json").exists()  # looking touches nothing
    output.open(settings)
    settings.closing.close()
    assert sorted(item.name for item in tmp_path.iterdir()) == [".rlhf_kit", "checkpoint-notes", "notes.txt"]


def test_resuming_takes_the_last_whole_checkpoint(tmp_path, capsys):
    checkpoint(tmp_path, 9)
    last = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, whole=False)
    (checkpoint(tmp_path, 12) / "optimizer.pt").unlink()
    for word in (True, "true", "last"):
        assert check_output(asked(tmp_path, resume=word)).checkpoint == last
    told = capsys.readouterr().err
    assert "checkpoint-12 is damaged: optimizer.pt is missing; checkpoint-11: it was not completely written. " in told
    assert "Resuming from checkpoint-10." in told


def test_the_last_checkpoint_is_the_one_written_last(tmp_path):
    """A run went back from 8 to 4, and was killed at 6: it goes on from there."""
    checkpoint(tmp_path, 8)
    checkpoint(tmp_path, 4)
    back = checkpoint(tmp_path, 6)
    assert check_output(asked(tmp_path, resume=True)).checkpoint == back


def test_resuming_with_nothing_to_resume_starts_from_the_beginning(tmp_path, capsys):
    settings = asked(tmp_path / "new", resume=True)
    assert check_output(settings).checkpoint is None
    assert settings.training.resume_from_checkpoint is None
    assert "No complete checkpoint" in capsys.readouterr().err
    Folder(tmp_path, RUN).claim("checkpoint-4")
    checkpoint(tmp_path, 4, whole=False)  # killed while it wrote the first
    assert check_output(asked(tmp_path, resume=True)).checkpoint is None


def test_where_all_checkpoints_are_damaged_resuming_is_refused(tmp_path):
    (checkpoint(tmp_path, 4) / "scheduler.pt").write_bytes(b"")
    with pytest.raises(UserError, match="complete checkpoint left. checkpoint-4 is damaged: scheduler.pt has 0 bytes"):
        check_output(asked(tmp_path, resume=True))


def test_a_named_checkpoint_must_be_there_and_whole(tmp_path):
    checkpoint(tmp_path, 4)
    broken = checkpoint(tmp_path, 5)
    (broken / "rng_state.pth").write_bytes(b"y")
    with pytest.raises(UserError, match="no such folder.*has checkpoint-4, checkpoint-5"):
        check_output(asked(tmp_path, resume=str(tmp_path / "checkpoint-6")))
    with pytest.raises(UserError, match="not a complete checkpoint: the content of rng_state.pth has changed"):
        check_output(asked(tmp_path, resume=str(broken)))
    with pytest.raises(UserError, match="give only one of them"):
        check_output(asked(tmp_path, resume=True, overwrite=True))


def test_an_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_output(asked(tmp_path / "file"))


def test_metrics_after_the_resumed_step_are_dropped_and_time_goes_on(tmp_path):
    lines = [
        {"step": 2, "time": 50.0, "loss": 3.0},
        {"step": 4, "time": 100.0, "loss": 2.0},
        {"step": 6, "time": 150.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "ti')
    metrics = MetricsFile(tmp_path)
    state = SimpleNamespace(is_world_process_zero=True, global_step=4, stateful_callbacks={})
    metrics.on_train_begin(None, state, None)
    state.global_step = 5
    metrics.on_log(None, state, None, logs={"loss": 1.5, "bad": float("nan"), "word": "x"})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[:2] == lines[:2] and len(rows) == 3
    assert rows[2]["time"] >= 100.0 and rows[2] == {"step": 5, "time": rows[2]["time"], "loss": 1.5, "bad": None}


def test_a_new_run_starts_its_metrics_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time": 9.0, "eval_loss": 3.0}\n')
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, stateful_callbacks={})
    MetricsFile(tmp_path).on_train_begin(None, state, None)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_numbers_are_json():
    assert numbers({"a": 1, "b": 2.5, "c": float("inf"), "d": True, "e": "x"}) == {"a": 1, "b": 2.5, "c": None}
