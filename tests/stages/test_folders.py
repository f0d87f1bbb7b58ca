"""A folder is only ever ours: no stage removes or replaces what is a user's, however the folder is spelled."""

import json
import os
import subprocess
import sys

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.storage import LOCK, RUN, Folder, keep_lines, whole_lines
from rlhf_kit.training.checks import Watch
from tests.tiny_stages import QUIET, STAGES
from tests.victims import every_byte, project


def spelled(folder, how):
    """The folder as a user may write it; the current one is beside it."""
    return {
        "absolute": str(folder),
        "relative": folder.name,
        "slash": f"{folder.name}/",
        "dots": f"x/../{folder.name}/.",
        "link": "link",
    }[how]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("flag", [[], ["--overwrite_output_dir"]], ids=["plain", "overwrite"])
def test_a_users_folder_is_refused_and_stays(name, flag, stage, tmp_path, capsys):
    folder = project(tmp_path / "project")
    before = every_byte(tmp_path)
    assert stage(name, folder, *flag) == 2
    told = capsys.readouterr().err
    assert "README.md" in told or "run.json" in told
    assert every_byte(tmp_path) == before


@pytest.mark.parametrize("how", ["absolute", "relative", "slash", "dots", "link"])
@pytest.mark.parametrize("flag", [[], ["--overwrite_output_dir"]], ids=["plain", "overwrite"])
def test_however_the_folder_is_spelled(how, flag, stage, tmp_path, monkeypatch):
    folder = project(tmp_path / "project")
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    before = every_byte(tmp_path)
    assert stage("sft", spelled(folder, how), *flag) == 2
    assert every_byte(tmp_path) == before


@pytest.mark.parametrize(
    "taken", ["config.json", "README.md", "ema/x", "completions/x", "vocab.txt", "checkpoint-3/x"]
)
def test_one_file_under_a_name_of_ours_is_enough(taken, stage, tmp_path, capsys):
    path = tmp_path / "out" / taken
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = every_byte(tmp_path)
    for flag in ([], ["--overwrite_output_dir"]):
        assert stage("sft", tmp_path / "out", *flag) == 2
        assert taken.split("/")[0] in capsys.readouterr().err and every_byte(tmp_path) == before


@pytest.mark.parametrize("name", STAGES)
def test_a_run_beside_a_users_files_is_replaced_and_they_stay(name, stage, tmp_path):
    folder = tmp_path / "out"
    mine = {"runs/my/base/model.safetensors": "mine", "notes.txt": "mine", "eval/report.html": "mine"}
    for path, text in mine.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    assert stage(name, folder, "--save_steps", "1") == 0
    first = every_byte(folder)
    assert stage(name, folder, "--seed", "9") == 2 and every_byte(folder) == first
    assert stage(name, folder, "--save_strategy", "no", "--overwrite_output_dir") == 0
    assert all((folder / path).read_text() == text for path, text in mine.items())
    assert not list(folder.glob("checkpoint-*")) and (folder / "model.safetensors").is_file()
    assert stage(name, folder, "--dry_run", "--overwrite_output_dir") == 0


def test_a_file_of_ours_that_was_changed_since_is_the_users(stage, tmp_path, capsys):
    folder = tmp_path / "out"
    assert stage("reward", folder) == 0
    for changed in ("README.md", "checkpoint-2/config.json", "model.safetensors"):
        was = (folder / changed).read_bytes()
        (folder / changed).write_bytes(was[:-1] + b"!")
        before = every_byte(folder)
        assert stage("reward", folder, "--overwrite_output_dir") == 2
        assert changed in capsys.readouterr().err and every_byte(folder) == before
        (folder / changed).write_bytes(was)
    (folder / "checkpoint-2" / "mine.txt").write_text("mine")
    assert stage("reward", folder, "--overwrite_output_dir") == 2 and "mine.txt" in capsys.readouterr().err
    (folder / "checkpoint-2" / "mine.txt").rename(folder / "mine.txt")
    assert stage("reward", folder, "--overwrite_output_dir") == 0 and (folder / "mine.txt").is_file()


def test_a_link_in_the_place_of_ours_is_not_followed(stage, tmp_path):
    folder, precious = tmp_path / "out", tmp_path / "precious"
    assert stage("sft", folder) == 0
    (folder / "checkpoint-2").rename(precious)
    (folder / "checkpoint-2").symlink_to(precious)
    before, kept = every_byte(tmp_path), every_byte(precious)
    assert stage("sft", folder, "--overwrite_output_dir") == 2 and every_byte(tmp_path) == before
    Folder(folder, RUN).clear()  # were it not refused, what is recorded under the link's name would still not be ours
    assert every_byte(precious) == kept


def test_a_run_of_an_earlier_version_is_left_alone(stage, tmp_path, capsys):
    folder = tmp_path / "out"
    assert stage("sft", folder) == 0
    (folder / ".rlhf_kit").unlink()
    before = every_byte(folder)
    assert stage("sft", folder, "--overwrite_output_dir") == 2
    assert "no run is recorded to have written" in capsys.readouterr().err
    assert stage("sft", folder) == 2 and "--overwrite_output_dir would not replace it" in capsys.readouterr().err
    assert every_byte(folder) == before


def test_a_folder_that_holds_what_the_run_reads_is_refused(stage, demonstrations, base, tmp_path, capsys, monkeypatch):
    first, second = tmp_path / "runs" / "first", tmp_path / "runs" / "second"
    assert stage("sft", first) == 0
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    before = every_byte(tmp_path)
    for model in (first, "runs/first", "link", "runs/first/", "runs/../runs/first", "runs/first/checkpoint-2"):
        for output in (first, "runs/first/", "link", "runs", ".", tmp_path):
            assert stage("sft", output, "--model_name_or_path", model, "--overwrite_output_dir") == 2
            assert "--model_name_or_path" in capsys.readouterr().err
            assert every_byte(tmp_path) == before
    (first / "more.jsonl").write_bytes(demonstrations.read_bytes())
    (first / "my_rewards.py").write_text("def brief(completions, **columns):\n    return [0.0 for _ in completions]\n")
    monkeypatch.chdir(first)
    before = every_byte(tmp_path)
    for option, value in {
        "--dataset_name": "more.jsonl",
        "--eval_dataset_name": first / "more.jsonl",
        "--tokenizer_name_or_path": first,
    }.items():
        assert stage("sft", first, option, value, "--overwrite_output_dir") == 2
        assert option in capsys.readouterr().err and every_byte(tmp_path) == before
    for option, value in {
        "--reward_funcs": "my_rewards:brief",
        "--ref_model_name_or_path": first,
        "--value_model": first,
        "--ptx_dataset_name": "more.jsonl",
    }.items():
        assert stage("ppo", first, option, value, "--overwrite_output_dir") == 2
        assert option in capsys.readouterr().err and every_byte(tmp_path) == before
    assert stage("reward", first, "--calibration_dataset_name", "more.jsonl", "--overwrite_output_dir") == 2
    assert every_byte(tmp_path) == before
    assert stage("sft", second, "--use_peft") == 0
    before = every_byte(tmp_path)
    assert stage("sft", first, "--model_name_or_path", base, "--tokenizer_name_or_path", second) == 2  # no flag
    config = second / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(first)}))
    before = every_byte(tmp_path)
    assert stage("sft", first, "--model_name_or_path", second, "--overwrite_output_dir") == 2  # an adapter on it
    assert str(first) in capsys.readouterr().err and every_byte(tmp_path) == before


# Each moment in a process of its own, which kills itself: after a call, or in the place of it.
KILLED = """
import os, signal, sys
from importlib import import_module
from rlhf_kit.cli import main

folder, *argv = sys.argv[1:]
for name, (module, owner, method, call, instead) in {moments}.items():
    child = os.fork()
    if child == 0:
        holder = getattr(import_module(module), owner)
        was, calls = getattr(holder, method), []

        def kill(*args, **kwargs):
            calls.append(1)
            if len(calls) < call or not instead:
                was(*args, **kwargs)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(holder, method, kill)
        os._exit(main(["sft", *argv, "--output_dir", folder + "/" + name]))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, name
"""
MOMENTS = {
    "before the first step": ("rlhf_kit.stages.output", "MetricsFile", "on_train_begin", 1, False),
    "in the middle of a checkpoint": ("transformers", "Trainer", "_save_optimizer_and_scheduler", 2, False),
    "when a checkpoint is whole": ("rlhf_kit.stages.output", "CheckpointRecord", "on_save", 1, True),
    "before the model moves": ("rlhf_kit.storage", "Folder", "take", 1, True),
    "while the model moves": ("rlhf_kit.storage", "os", "replace", 2, False),
    "before the record": ("rlhf_kit.storage", "Folder", "take", 1, False),
}


@pytest.fixture(scope="module")
def killed(tokenizer_folder, tmp_path_factory):
    """The folders that runs have left that were killed at these moments, in one folder."""
    folder = tmp_path_factory.mktemp("killed")
    data = folder / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    model = GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=64, vocab_size=300)
    GPT2LMHeadModel(model).save_pretrained(folder / "base")
    argv = ["--model_name_or_path", folder / "base", "--tokenizer_name_or_path", tokenizer_folder]
    argv += ["--dataset_name", data, "--max_steps", "4", "--save_steps", "1", *QUIET]
    script = KILLED.format(moments=repr(MOMENTS))
    ended = subprocess.run([sys.executable, "-c", script, folder, *map(str, argv)], capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_run_wrote_is_known(moment, killed, stage, capsys):
    folder = killed / moment
    left = set(every_byte(folder))
    for mine in ("README.md", "config.json", "vocab.txt"):
        if mine not in left:
            (folder / mine).write_text("mine")
            assert stage("sft", folder, "--overwrite_output_dir") == 2
            assert mine in capsys.readouterr().err and (folder / mine).read_text() == "mine"
            (folder / mine).unlink()
    assert left <= set(every_byte(folder))
    (folder / "notes.txt").write_text("mine")
    assert stage("sft", folder, "--save_strategy", "no", "--overwrite_output_dir") == 0
    assert not list(folder.glob("checkpoint-*")) and not (folder / ".saving").exists()
    assert (folder / "notes.txt").read_text() == "mine" and not (folder / LOCK).exists()
    assert "was locked by a run that has ended" in capsys.readouterr().err


def test_a_run_that_failed_before_it_trained_is_not_another_run(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.rewards.brief", lambda **columns: 1 / 0)
    assert stage("ppo", tmp_path / "out") == 2 and "ZeroDivisionError" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.jsonl").is_file()
    monkeypatch.undo()
    assert stage("ppo", tmp_path / "out") == 0
    assert stage("ppo", tmp_path / "out") == 2 and "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_failed_in_its_first_step_is_not_another_run(name, stage, texts, tmp_path, monkeypatch):
    """Also where it has measured the model before it trains."""
    more = ["--eval_on_start", "--eval_dataset_name", texts] if name in ("pretrain", "mlm") else []
    monkeypatch.setattr(Watch, "look", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            stage(name, tmp_path / "out", *more)
    monkeypatch.undo()
    assert stage(name, tmp_path / "out", *more) == 0
    assert stage(name, tmp_path / "out", *more) == 2


def test_a_model_that_cannot_take_its_place_stays_whole_beside_it(stage, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    take = sys.modules["rlhf_kit.storage"].Folder.take

    def meanwhile(self, source):
        (folder / "config.json").write_text("mine")
        take(self, source)

    monkeypatch.setattr("rlhf_kit.storage.Folder.take", meanwhile)
    assert stage("sft", folder, "--save_strategy", "no") == 2
    assert "config.json" in capsys.readouterr().err and (folder / "config.json").read_text() == "mine"
    assert {"config.json", "model.safetensors"} <= {item.name for item in (folder / ".saving").iterdir()}
    assert not (folder / "model.safetensors").exists() and not (folder / "run.json").exists()


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=["readable", "private"])
def test_what_a_run_saves_follows_the_umask(mask, stage, tmp_path):
    was = os.umask(mask)
    try:
        assert stage("sft", tmp_path / "out") == 0
    finally:
        os.umask(was)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path.name for path in modes} >= {"model.safetensors", "optimizer.pt", "run.json", "metrics.jsonl"}
    assert set(modes.values()) == {0o666 & ~mask}


def test_a_line_that_was_cut_off_is_not_kept(tmp_path):
    path = tmp_path / "lines.jsonl"
    for count, kept in ((None, "[1]\n[2]\n"), (2, "[1]\n[2]\n"), (1, "[1]\n"), (0, "")):
        path.write_text("[1]\n[2]\n[3")
        assert whole_lines(path) == 2
        keep_lines(path, count)
        assert path.read_text() == kept
    keep_lines(tmp_path / "none.jsonl")
    assert whole_lines(tmp_path / "none.jsonl") == 0
