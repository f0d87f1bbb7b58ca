"""The one command line: refusals before torch, exit codes, completion, and the page of options."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_kit import cli
from rlhf_kit.cli.commands import COMMANDS, GROUPS
from rlhf_kit.cli.completion import script
from rlhf_kit.errors import UserError
from rlhf_kit.options.declared import aliases, declared_fields, declared_in_source
from rlhf_kit.report.doctor import DoctorOptions
from tests.options.tables import PAGE, page

TYPOS = """
import sys
from rlhf_kit.cli import main
for argv in {argvs}:
    assert main(argv) == 2, argv
print("HEAVY", sorted({{"torch", "transformers", "trl", "datasets", "peft", "numpy"}} & set(sys.modules)))
"""


def test_a_typo_in_any_command_is_told_before_torch_is_imported():
    argvs = [[*words.split(), "--no_such_option", "x"] for words in COMMANDS]
    argvs += [["sft", "--modle", "gpt2"], ["pppo"], ["ppo", "--response_length", "3"], ["score", "--ensemble", "avg"]]
    code = TYPOS.format(argvs=argvs)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY []"
    for told in (
        "--modle: no such option. Did you mean 'model'?",
        "--response_length: this option was renamed; write max_completion_length.",
        "Did you mean 'ppo'?",
        '--ensemble: got "avg", needs one of mean, min, mean-std or none.',
    ):
        assert told in ended.stderr
    assert ended.stderr.count("--no_such_option: no such option.") == len(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_takes_the_short_forms_that_it_has_options_for(words):
    options = declared_in_source([*COMMANDS[words].options.values()]).options
    short = aliases(options)
    assert ("model" in short) == ("model_name_or_path" in options or "models" in options)
    assert ("data" in short) == ("dataset_name" in options)
    assert ("output" in short) == ("output_dir" in options or "output_file" in options)
    assert all(option.help for option in options.values() if not option.module.startswith(("transformers", "trl")))


@pytest.mark.parametrize("error, status, told", [
    (UserError("a mistake"), 2, "rlhf-kit doctor: a mistake"),
    (KeyboardInterrupt(), 130, "Interrupted. The same command starts over."),
    (NotADirectoryError(20, "Not a directory", "x/y"), 2, "'x/y': Not a directory"),
])  # fmt: skip
def test_how_a_command_ends(error, status, told, monkeypatch, capsys):
    def run(options):
        assert options == DoctorOptions(Path("x"))
        raise error

    monkeypatch.setattr("rlhf_kit.report.doctor.run", run)
    assert cli.main(["doctor", "x"]) == status
    assert told in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["doctor", "x"]) == status
    assert capsys.readouterr().err == ""  # the first process has said it


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def run(options):
        raise ZeroDivisionError

    monkeypatch.setattr("rlhf_kit.report.doctor.run", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "x"])


def completed(*words):
    """What bash offers for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    bash = script("bash", COMMANDS, GROUPS)
    code = f'{bash}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _rlhf_kit; echo "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_commands_options_and_values():
    assert completed("rlhf-kit", "pr") == ["pretrain"]
    assert completed("rlhf-kit", "merge", "--out") == ["--output_dir", "--output"]
    assert completed("rlhf-kit", "merge", "--dtype", "b") == ["bfloat16"]
    assert "--learning_rate" in completed("rlhf-kit", "sft", "--learn")


def test_completion_offers_every_option_that_the_class_declares():
    assert {f"--{name}" for name in declared_fields([DoctorOptions])} < set(completed("rlhf-kit", "doctor", "--"))


def test_completion_leaves_out_what_help_hides():
    assert completed("rlhf-kit", "sft", "--do_") == []
    assert completed("rlhf-kit", "sft", "--gradient_ch") == []
    assert completed("rlhf-kit", "sft", "--gradient_") == ["--gradient_accumulation_steps"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_scripts_are_of_the_shells_language(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n"], input=script(shell, COMMANDS, GROUPS), text=True, check=True)


def test_the_page_of_options_is_that_of_the_dataclasses():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/options/tables.py --write"
