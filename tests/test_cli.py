import gc
import re
import subprocess
import sys

import pytest

import rlhf_kit
from rlhf_kit import cli
from rlhf_kit.cli.commands import COMMANDS, STAGES
from rlhf_kit.cli.help import HELP, panels
from rlhf_kit.options.declared import HIDDEN, declared_fields
from rlhf_kit.reward import RewardConfig
from rlhf_kit.stages.arguments import DataArguments, ModelArguments, RunArguments
from rlhf_kit.stages.calibration import CalibrationArguments
from rlhf_kit.stages.ppo import PPOArguments
from rlhf_kit.stages.ppo import PPOConfig as PPO
from rlhf_kit.stages.pretrain import PretrainConfig
from rlhf_kit.stages.sft import SFTConfig

CLASSES = {"pretrain": [PretrainConfig], "sft": [SFTConfig], "ppo": [PPOArguments, PPO]}
CLASSES["reward"] = [RewardConfig, CalibrationArguments]
HEAVY = """
import sys
from rlhf_kit.cli import main
for argv in (["--help"], ["--version"], *([stage, "--help-all"] for stage in ("pretrain", "sft", "reward", "ppo"))):
    assert main(argv) == 0
EVALS = ("eval reward", "eval coqa", "eval score", "eval compare", "eval icl", "eval suite")
for words in (*EVALS, "score", "convert", "merge", "generate", "chat"):
    try:
        main([*words.split(), "--help"])
    except SystemExit as ended:
        assert ended.code == 0
print("HEAVY", sorted({"torch", "transformers", "trl", "datasets", "peft"} & set(sys.modules)))
"""


def test_help_imports_nothing_heavy():
    ended = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_the_root_help_names_the_stages_in_order(capsys):
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"  {stage} ") for stage in ("pretrain", "sft", "reward", "ppo", "demo")]
    assert places == sorted(places)
    assert "文字接龍" in said and said.index("Examples:") > places[-1]


def test_a_misspelt_command(capsys):
    assert cli.main(["pppo"]) == 2
    assert "Did you mean 'ppo'?" in capsys.readouterr().err


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"rlhf-kit {rlhf_kit.__version__}"


@pytest.mark.parametrize("stage", CLASSES)
def test_the_full_help_lists_exactly_what_parsing_accepts(stage):
    """Help reads source text, parsing reads classes: they must tell the same."""
    shown = [option.name for _, options in panels(COMMANDS[stage], everything=True) for option in options]
    assert len(shown) == len(set(shown))
    accepted = set(declared_fields([ModelArguments, DataArguments, RunArguments, *CLASSES[stage]]))
    assert set(shown) == accepted - set(HIDDEN)
    assert {*HELP, "gradient_checkpointing", "do_train", "local_rank"} <= accepted


@pytest.mark.parametrize("stage", STAGES)
def test_no_help_calls_an_option_deprecated_or_unused(stage):
    """The libraries' own sentences do, of aliases and of what they leave to scripts: see HIDDEN and HELP."""
    for _, options in panels(COMMANDS[stage], everything=True):
        for option in options:
            assert not re.search(r"deprecated|not directly used|will be removed", option.help, re.IGNORECASE), option


@pytest.mark.parametrize("stage", CLASSES)
def test_the_short_help_is_short_and_every_option_of_ours_is_explained(stage):
    shown = dict(panels(COMMANDS[stage]))
    names = [option.name for options in shown.values() for option in options]
    assert len(names) == len(set(names)) and {"model_name_or_path", "dataset_name", "output_dir", "seed"} <= set(names)
    assert 15 <= len(shown["Training: the common options"]) <= 30
    unexplained = [option.name for options in shown.values() for option in options if not option.help]
    assert not unexplained


def test_a_stage_is_reached_with_its_arguments(capsys):
    assert cli.main(["sft", "--dataset_nam", "x"]) == 2
    assert "rlhf-kit sft: " in capsys.readouterr().err


COLLECTED = """
import gc, sys
from rlhf_kit.cli import run
collected, start = [], run.imported
def imported(*names):
    gc.callbacks.append(lambda phase, info: collected.append(phase))
    started = start(*names)
    gc.callbacks.clear()
    return started
run.imported = imported
assert run.main() == 2
print("GC", len(collected), "torch" in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_no_garbage_is_looked_for_while_a_command_is_imported(tmp_path):
    options = {"model_name_or_path": "a", "reward_funcs": "b", "dataset_name": "c.jsonl", "output_dir": "runs"}
    command = [sys.executable, "-c", COLLECTED, "ppo", *(f"--{name}={value}" for name, value in options.items())]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.splitlines()[-1] == "GC 0 True True True"


def test_a_notebook_keeps_its_garbage_collector_as_it_is(capsys):
    before = gc.isenabled(), gc.get_freeze_count()
    assert cli.main(["doctor", "nowhere"]) == 2
    assert (gc.isenabled(), gc.get_freeze_count()) == before


@pytest.mark.parametrize("words", [["--help"], ["ppo", "--help-all"], ["eval", "--help"], ["--version"]])
def test_nobody_has_to_read(words):
    command = [sys.executable, "-m", "rlhf_kit", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before a word is said
        assert process.stderr.read() == "" and process.wait() == 0
