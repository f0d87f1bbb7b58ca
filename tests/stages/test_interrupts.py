"""Ctrl-C: one line that can be pasted, and no traceback, at whatever moment it comes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_kit import cli
from rlhf_kit.cli.commands import COMMANDS
from rlhf_kit.stages import advice, sft
from rlhf_kit.stages.output import MetricsFile
from rlhf_kit.terminal import interrupts
from rlhf_kit.training.checkpoints import seal


@pytest.fixture
def command(base, demonstrations, tmp_path):
    argv = [
        "sft",
        "--model_name_or_path",
        base,
        "--dataset_name",
        demonstrations,
        "--output_dir",
        tmp_path / "my runs",
    ]
    argv += ["--max_steps", 4, "--save_steps", 2, "--logging_steps", 1, "--per_device_train_batch_size", 2]
    return [str(item) for item in [*argv, "--disable_tqdm"]]


@pytest.fixture
def interrupted(monkeypatch, capsys):
    """interrupted(argv, step, interrupt) -> exit status, what was said; at the log of that step, 0: loading."""

    def go(argv, step=3, interrupt=KeyboardInterrupt):
        def on_log(self, args, state, control, logs=None, **options):
            if state.global_step >= step:
                raise interrupt

        def load(*args):
            raise interrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricsFile, "on_log", on_log) if step else patch.setattr(sft, "load_model", load)
            status = cli.main(argv)
        return status, capsys.readouterr().err

    return go


def pasted(said):
    """The command in the advice, as a shell takes it."""
    word, *rest = shlex.split(said.strip().splitlines()[-1].partition(": ")[2])
    assert word == "rlhf-kit"
    return rest


def ended(argv):
    return json.loads((Path(argv[argv.index("--output_dir") + 1]) / "run.json").read_text())


@pytest.mark.parametrize("more", [[], ["--overwrite_output_dir"], ["--overwrite-output-dir=true"]], ids=str)
def test_the_advice_pasted_goes_on(more, command, interrupted):
    status, said = interrupted([*command, *more])
    assert status == 130 and "checkpoint-2 is saved 已存檔. To resume 接續訓練: rlhf-kit sft " in said
    assert cli.main(pasted(said)) == 0
    assert ended(command)["resumed_from"] == "checkpoint-2"


def test_the_advice_knows_what_a_yaml_says(command, interrupted, tmp_path):
    (tmp_path / "my.yaml").write_text("overwrite_output_dir: true\nsave_total_limit: 5\n")
    status, said = interrupted([*command, "--config", str(tmp_path / "my.yaml")])
    assert cli.main(pasted(said)) == 0 and ended(command)["resumed_from"] == "checkpoint-2"


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("more", [[], ["--overwrite_output_dir"]], ids=str)
def test_where_nothing_was_saved_it_says_so_and_begins_again(step, more, command, interrupted):
    status, said = interrupted([*command, *more], step)
    assert status == 130 and "Nothing has been saved yet 還沒有存檔. To start over 重新開始: rlhf-kit sft " in said
    assert cli.main(pasted(said)) == 0
    assert ended(command)["resumed_from"] is None and ended(command)["steps"] == 4


def test_a_run_that_was_to_be_replaced_is_not_gone_on_with(command, interrupted):
    assert cli.main(command) == 0
    status, said = interrupted([*command, "--overwrite_output_dir"], 0)
    assert "Nothing has been saved yet" in said and pasted(said) == [*command, "--overwrite_output_dir"]


def test_a_resumed_run_goes_on_from_the_newest(command, interrupted):
    interrupted(command)
    first = str(Path(command[command.index("--output_dir") + 1]) / "checkpoint-2")
    argv = [*command, "--resume_from_checkpoint", first]
    argv[argv.index("--max_steps") + 1] = "6"
    status, said = interrupted(argv, 5)
    assert "checkpoint-4 is saved" in said and "checkpoint-2" not in said
    assert cli.main(pasted(said)) == 0 and ended(command)["resumed_from"] == "checkpoint-4"


@pytest.mark.parametrize("number", [1, 2])
def test_half_a_checkpoint_is_none(number, command, interrupted, monkeypatch):
    """Ctrl-C before the first is whole, and before the second."""
    written = []

    def stop(path):
        written.append(path)
        if len(written) == number:
            raise KeyboardInterrupt
        seal(path)

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_kit.training.trainer.seal", stop)
        status, told = interrupted(command, 99)
    assert status == 130 and ("Nothing has been saved yet" if number == 1 else "checkpoint-2 is saved") in told
    assert cli.main(pasted(told)) == 0 and ended(command)["steps"] == 4
    assert ended(command)["resumed_from"] == (None if number == 1 else "checkpoint-2")


def test_sigterm_ends_a_run_as_ctrl_c_does(command, interrupted):
    status, said = interrupted(command, interrupt=interrupts.Terminated)
    assert status == 143 and "To resume 接續訓練: rlhf-kit sft" in said


def test_options_and_values_are_taken_out_however_they_are_spelt():
    argv = ["--a", "1", "--resume-from-checkpoint", "x/checkpoint-2", "--overwrite_output_dir=yes", "--b", "2", "3"]
    assert advice.without(argv, "resume_from_checkpoint", "overwrite_output_dir") == ["--a", "1", "--b", "2", "3"]
    assert advice.without(["--no_overwrite_output_dir", "--c"], "overwrite_output_dir") == ["--c"]


@pytest.mark.parametrize(
    "tool,told",
    [("accelerate", "accelerate launch --num_processes 2 recipes/sft.py"), ("run.sh.py", "python ")],
)
def test_a_launcher_stands_in_the_advice(tool, told, tmp_path):
    """Its command line ends with ours."""
    (tmp_path / "child.py").write_text(
        "import sys\nfrom rlhf_kit.stages.advice import started_by\nprint(' '.join(started_by(sys.argv[1:])))\n"
    )
    (tmp_path / tool).write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, {str(tmp_path / 'child.py')!r}, *sys.argv[sys.argv.index('--a'):]])\n"
    )
    line = [sys.executable, tmp_path / tool, "launch", "--num_processes", "2", "recipes/sft.py", "--a", "b c"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    assert said == told if tool == "accelerate" else said.startswith(told) and "recipes/sft.py" in said


IMPORTING = """
import os, signal, sys


class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), {signal})


sys.meta_path.insert(0, Interrupt())
sys.argv = ["rlhf-kit", *{argv}]
from rlhf_kit.cli import main

sys.exit(main())
"""


@pytest.mark.parametrize(
    "argv,module,number",
    [
        (["sft", *"--model m --data d --output o".split()], "torch", 2),
        (["ppo", *"--model m --data d --output o --reward_funcs r".split()], "torch", 15),
        (["eval", "perplexity", "--model", "x", "--data", "y"], "torch", 2),
        (["demo"], "torch", 2),
        ([], "rich", 2),
        (["sft", "--help"], "rich", 15),
        (["score"], "yaml", 2),
    ],
    ids=str,
)
def test_ctrl_c_while_libraries_are_imported_is_clean(argv, module, number):
    code = IMPORTING.format(signal=number, argv=argv, module=module)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 128 + number, ran.stderr
    assert re.fullmatch(r"\s*rlhf-kit: interrupted before it did anything.\s*", ran.stderr)


@pytest.mark.parametrize("argv", [["convert", "x"], ["score", "x"], ["demo"], ["doctor", "x"]], ids=str)
def test_the_other_commands_end_with_a_line_too(argv, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_kit.cli.run._run", interrupted)
    assert cli.main(argv) == 130
    assert f"Interrupted. {COMMANDS[argv[0]].interrupted}" in capsys.readouterr().err
