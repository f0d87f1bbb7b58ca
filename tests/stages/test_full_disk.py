"""No room, no permission: one message, and what was saved before can be loaded and gone on with."""

import json
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from rlhf_kit.cli import main
from rlhf_kit.eval import task as eval_task
from rlhf_kit.eval.items import Run
from rlhf_kit.stages.output import METRICS, CheckpointRecord
from rlhf_kit.storage import LOCK, write_fault
from rlhf_kit.training.checkpoints import checkpoints, damage
from tests.tiny_stages import STAGES
from tests.victims import every_byte

LOADED_BY = {"mlm": AutoModelForMaskedLM, "reward": AutoModelForSequenceClassification}
OFTEN = ["--save_steps", "1"]


@contextmanager
def files_of_at_most(size):
    """As a quota would: writing more into one file fails."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


def fill(disk, left=0):
    """Leave at most so many bytes of room."""
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
        while file.write(b"x" * 4096):
            pass
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - left)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("a disk of our own needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def told_once(told, *saved):
    assert "Traceback" not in told and told.count("cannot be written: ") == 1, told
    assert all(word in told for word in saved), told


@pytest.mark.parametrize("name", STAGES)
def test_a_first_checkpoint_that_does_not_fit(name, stage, tmp_path, capsys):
    out = tmp_path / "out"
    with files_of_at_most(60_000):  # the weights take more
        assert stage(name, out, *OFTEN) == 1
    told_once(capsys.readouterr().err, "Nothing had been saved yet", "start over with --overwrite_output_dir")
    assert not list(out.glob("checkpoint-*")) and not (out / LOCK).exists()
    assert stage(name, out, *OFTEN, "--overwrite_output_dir") == 0


def test_an_optimizer_that_does_not_fit(stage, base, tmp_path, capsys):
    with files_of_at_most(int(1.5 * (base / "model.safetensors").stat().st_size)):
        assert stage("sft", tmp_path / "out", *OFTEN) == 1
    told_once(capsys.readouterr().err, "Nothing had been saved yet")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("name", STAGES)
def test_what_was_saved_before_stays_and_is_gone_on_with(name, stage, tmp_path, capsys):
    out = tmp_path / "out"
    assert stage(name, out, *OFTEN) == 0
    whole = (out / "model.safetensors").read_bytes()
    saved, *later = checkpoints(out)
    for path in (*later, out / "model.safetensors", out / "run.json"):  # killed before they were written
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with files_of_at_most(60_000):
        assert stage(name, out, *OFTEN, "--resume_from_checkpoint") == 1
    told_once(capsys.readouterr().err, f"{saved.name} was saved before and is whole", "with --resume_from_checkpoint")
    LOADED_BY.get(name, AutoModelForCausalLM).from_pretrained(saved)
    assert stage(name, out, *OFTEN, "--resume_from_checkpoint") == 0
    assert (out / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", STAGES)
def test_a_disk_without_room_for_the_final_model(name, stage, small_disk, monkeypatch, capsys):
    out = small_disk / "out"
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointRecord, "on_train_end", lambda self, *_, **__: fill(small_disk, 65_536))
        assert stage(name, out, "--save_strategy", "no") == 1
    told_once(capsys.readouterr().err, "No space left on device")
    assert not (out / ".saving").exists() and (out / METRICS).stat().st_size and not (out / LOCK).exists()
    (small_disk / "filler").unlink()
    assert stage(name, out, "--save_strategy", "no", "--overwrite_output_dir") == 0


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_going_on_upon_a_full_disk_loses_nothing(name, stage, small_disk, capsys):
    out = small_disk / "out"
    assert stage(name, out, *OFTEN) == 0
    kept = (out / "model.safetensors").read_bytes()
    for file in ("model.safetensors", "run.json"):  # killed before the end
        (out / file).unlink()
    fill(small_disk)
    assert stage(name, out, *OFTEN, "--resume_from_checkpoint") == 1
    told_once(capsys.readouterr().err, "was saved before and is whole", "resume with --resume_from_checkpoint")
    assert not any(map(damage, checkpoints(out))) and not (out / LOCK).exists()
    (small_disk / "filler").unlink()
    assert stage(name, out, *OFTEN, "--resume_from_checkpoint") == 0
    assert (out / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("name", STAGES)
def test_a_folder_that_cannot_be_written_is_refused_before_anything(name, stage, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = every_byte(small_disk)
    for folder in (small_disk, small_disk / "new" / "out"):
        assert stage(name, folder) == 2 and stage(name, folder, "--dry_run") == 2
        assert f"'{small_disk}' cannot be written into" in capsys.readouterr().err
    assert every_byte(small_disk) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_of_another_user_is_refused(stage, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o555)
    assert stage("sft", tmp_path / "out") == 2 and "cannot be written into" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [1, 1_000])
def test_torchs_own_words_for_a_full_disk_are_known(numbers):
    with pytest.raises(RuntimeError) as found:
        torch.save({"a": torch.zeros(numbers)}, "/dev/full")
    assert write_fault(found.value) == "a file could not be written completely"
    assert write_fault(RuntimeError("shapes cannot be multiplied")) is None


# -- an evaluation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def measure(base):
    def run(folder):
        options = ["--tasks", "1DC", "world-facts-en", "--shots", "0", "--limit", "6", "--max-batch-tokens", "64"]
        return main(["eval", "icl", "--models", str(base), *options, "--output", str(folder)])

    return run


@pytest.mark.parametrize("method", ["__enter__", "add", "finish"])
@pytest.mark.parametrize("left", [0, 4096])
def test_an_evaluation_on_a_full_disk_keeps_what_it_measured(
    method, left, measure, small_disk, tmp_path, monkeypatch, capsys
):
    """The disk is full when it begins to write, after four items, and when it sums up."""
    assert measure(tmp_path / "whole") == 0
    part, calls = getattr(Run, method), []

    def full(self, *args):
        calls.append(method)
        if len(calls) == (5 if method == "add" else 1):
            fill(small_disk, left)
        return part(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, method, full)
        status = measure(small_disk / "out")
    told = capsys.readouterr().err
    assert status == 1, told
    told_once(told, "Finished items are kept: free some space, and the same command resumes")
    (small_disk / "filler").unlink()
    assert measure(small_disk / "out") == 0
    folders = [folder / "base" for folder in (tmp_path / "whole", small_disk / "out")]
    one, two = ((folder / "items.jsonl").read_bytes() for folder in folders)
    assert one == two
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert two.pop("resumed") >= {"__enter__": 0, "add": 1, "finish": 12}[method] and one.pop("resumed") == 0
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_an_evaluation_into_a_folder_that_cannot_be_written_loads_nothing(measure, small_disk, monkeypatch, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setattr(eval_task, "load_generator", lambda *_: pytest.fail("a model was loaded"))
    for folder, said in ((small_disk, "cannot be written into"), (small_disk / "new", "Read-only file system")):
        assert measure(folder) == 2 and said in capsys.readouterr().err
