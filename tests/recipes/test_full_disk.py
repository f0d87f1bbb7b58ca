"""No room, no permission: one message, and what was saved before can be loaded and gone on with."""

import os
import resource
import subprocess
from contextlib import contextmanager

import pytest
from transformers import AutoModelForCausalLM

from rlhf_kit.recipes import sft
from rlhf_kit.recipes.output import METRICS, CheckpointRecord
from tests.victims import every_byte


@contextmanager
def files_of_at_most(size):
    """As a quota would: writing more into one file fails."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


@pytest.fixture
def train(base, demonstrations):
    def run(folder, *more):
        argv = [
            "--model_name_or_path",
            base,
            "--dataset_name",
            demonstrations,
            "--output_dir",
            folder,
            "--disable_tqdm",
        ]
        argv += ["--max_steps", "3", "--save_steps", "1", "--per_device_train_batch_size", "2", *more]
        return sft.main([str(word) for word in argv])

    return run


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["of the weights", "of the optimizer"])
def test_a_first_checkpoint_that_does_not_fit(share, train, base, tmp_path, capsys):
    out = tmp_path / "out"
    with files_of_at_most(int(share * (base / "model.safetensors").stat().st_size)):
        assert train(out) == 1
    told = capsys.readouterr().err
    assert "Nothing had been saved yet" in told and "start again by --overwrite_output_dir" in told
    assert "Traceback" not in told and told.count("cannot be written: ") == 1
    assert not list(out.glob("checkpoint-*"))
    assert train(out, "--overwrite_output_dir") == 0


def test_what_was_saved_before_stays_and_is_gone_on_with(train, tmp_path, monkeypatch, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    saved = CheckpointRecord.on_save
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, args, state, control, **kwargs):
        saved(self, args, state, control, **kwargs)
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointRecord, "on_save", fill)
        assert train(out) == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = capsys.readouterr().err
    assert "checkpoint-2 was saved before and is whole" in told and "go on by --resume_from_checkpoint" in told
    AutoModelForCausalLM.from_pretrained(out / "checkpoint-2")
    assert train(out, "--resume_from_checkpoint") == train(whole) == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("a disk of our own needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_without_room_for_the_final_model(train, small_disk, monkeypatch, capsys):
    def fill(self, args, state, control, **kwargs):
        if state.global_step == 3:
            with (small_disk / "filler").open("wb") as file, pytest.raises(OSError):
                while True:
                    file.write(b"x" * 4096)
                    file.flush()

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointRecord, "on_step_end", fill)
        assert train(small_disk / "out", "--save_strategy", "no") == 1
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert not (small_disk / "out" / ".saving").exists() and (small_disk / "out" / METRICS).exists()
    (small_disk / "filler").unlink()
    assert train(small_disk / "out", "--save_strategy", "no", "--overwrite_output_dir") == 0


def test_a_folder_that_cannot_be_written_is_refused_before_anything(train, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = every_byte(small_disk)
    for folder in (small_disk, small_disk / "new" / "out"):
        assert train(folder) == 2 and train(folder, "--dry_run") == 2
        assert f"'{small_disk}' cannot be written into" in capsys.readouterr().err
    assert every_byte(small_disk) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_of_another_user_is_refused(train, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o555)
    assert train(tmp_path / "out") == 2 and "cannot be written into" in capsys.readouterr().err
