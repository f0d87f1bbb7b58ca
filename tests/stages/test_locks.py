"""One run a folder: a second is refused on every process, what has ended is taken over, nothing is left behind."""

import json
import os
import socket
import subprocess
import time

import psutil
import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.stages import sft
from rlhf_kit.stages.output import MetricsFile, check_output
from rlhf_kit.storage import LOCK, RUN, Folder
from tests.stages.test_output import asked
from tests.tiny_stages import run_command
from tests.victims import every_byte


@pytest.fixture
def process():
    """Another one of this machine, that goes on."""
    with subprocess.Popen(["sleep", "600"]) as started:
        yield psutil.Process(started.pid)
        started.kill()


def hold(folder, **changes):
    folder.mkdir(exist_ok=True)
    holder = {"pid": 1, "host": socket.gethostname(), "started": 0.0, "since": "2026-01-01 00:00:00"}
    (folder / LOCK).write_text(json.dumps(holder | changes))


@pytest.fixture
def train(base, demonstrations, tmp_path):
    def run(*more):
        argv = ["--model_name_or_path", base, "--dataset_name", demonstrations, "--output_dir", tmp_path / "out"]
        argv += ["--max_steps", "1", "--disable_tqdm", *more]
        return run_command(sft, [str(word) for word in argv])

    return run


@pytest.mark.parametrize("flag", [[], ["--overwrite_output_dir"], ["--resume_from_checkpoint"], ["--dry_run"]])
def test_a_second_run_on_a_folder_is_refused(flag, train, process, tmp_path, capsys):
    hold(tmp_path / "out", pid=process.pid, started=process.create_time())
    before = every_byte(tmp_path)
    assert train(*flag) == 2
    assert f"held by another run (process {process.pid} on " in capsys.readouterr().err
    assert every_byte(tmp_path) == before


def test_what_has_ended_is_told_and_taken_over(train, process, tmp_path, capsys):
    process.kill()
    process.wait()
    for pid, started in ((process.pid, time.time()), (os.getpid(), time.time() - 10**6)):  # gone; its number reused
        hold(tmp_path / "out", pid=pid, started=started)
        assert train("--overwrite_output_dir") == 0
        assert f"was locked by a run that has ended (process {pid}, since 2026-01-01" in capsys.readouterr().err
        assert not (tmp_path / "out" / LOCK).exists()


def test_a_process_that_nobody_has_waited_for_has_ended(tmp_path):
    child = subprocess.Popen(["sleep", "600"])
    started = psutil.Process(child.pid).create_time()
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    hold(tmp_path / "out", pid=child.pid, started=started)
    assert Folder(tmp_path / "out", RUN).lock()["pid"] == child.pid
    child.wait()


def test_a_lock_of_another_machine_is_refused_with_what_to_do(train, tmp_path, capsys):
    hold(tmp_path / "out", host="node7")
    assert train() == 2
    told = capsys.readouterr().err
    assert "'node7'" in told and f"remove '{tmp_path}/out/{LOCK}'" in told
    (tmp_path / "out" / LOCK).write_text("")  # a kill, or a full disk, as it was written
    assert train() == 2 and f"remove '{tmp_path}/out/{LOCK}'" in capsys.readouterr().err
    (tmp_path / "out" / LOCK).unlink()
    assert train() == 0


def test_of_two_that_start_together_one_is_refused(tmp_path):
    first, second = asked(tmp_path / "out"), asked(tmp_path / "out")
    outputs = check_output(first), check_output(second)
    outputs[0].open(first)
    with pytest.raises(UserError, match=f"held by another run .process {os.getpid()} "):
        outputs[1].open(second)
    first.closing.close()
    outputs[1].open(second)  # the first trained nothing
    second.closing.close()
    assert not (tmp_path / "out" / LOCK).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, UserError])
def test_a_run_that_fails_lets_go(error, train, tmp_path, monkeypatch):
    def fail(self, args, state, control, **kwargs):
        assert (tmp_path / "out" / LOCK).is_file()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_step_end", fail, raising=False)
        if error is ZeroDivisionError:
            with pytest.raises(error):
                train()
        else:
            assert train() == (130 if error is KeyboardInterrupt else 2)
    assert not (tmp_path / "out" / LOCK).exists()
    assert train() == 0


def test_every_process_of_a_second_run_is_refused(base, demonstrations, process, ranks, tmp_path):
    """Also where only the main one sees it: another run came in after the look."""
    argv = ["--model_name_or_path", base, "--dataset_name", demonstrations, "--output_dir", tmp_path / "out"]
    argv += ["--max_steps", "1", "--disable_tqdm", "--use_cpu"]
    hold(tmp_path / "out", pid=process.pid, started=process.create_time())
    statuses, said = ranks("sft", argv)
    assert statuses == [2, 2], said
    assert said.count("held by another run") == 1  # told once
