"""Every command does what it did: exit status, files and what is in them, what its messages quote, count and name.

What a run may change is renewed by `python tests/golden/commands.py --write`, and the difference of the records read.
"""

import json
import re

import pytest
import torch
from commands import CHAINS, OLD_EVALS, OLD_STAGES, RUNS, made, within
from places import FIXTURES, furnish
from records import compare, differences, missing, run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the figures are a CPU's")


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    """`now(chain)`: what its runs do now; each chain is run once, in one folder with the others."""
    folder = tmp_path_factory.mktemp("golden")
    furnish(folder)
    found = {}

    def of(chain):
        if chain not in found:
            with within(folder):
                found[chain] = made(chain)
        return found[chain]

    return of


def recorded(chain):
    return json.loads((FIXTURES / f"{chain}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [run.name for run in RUNS])
def test_a_command_does_what_it_did(name, now):
    chain = name.partition("/")[0]
    assert not compare(recorded(chain)[name], *now(chain)[name])


@pytest.mark.parametrize("task", OLD_EVALS)
def test_the_items_of_an_earlier_version_are_taken_over(task, now):
    ((record, _),) = now(f"old-{task}").values()
    results = [content for name, content in record["files"].items() if name.endswith("results.json")]
    assert record["status"] == 0 and max(found["resumed"] for found in results) >= 2


@pytest.mark.parametrize("stage", OLD_STAGES)
def test_a_run_of_an_earlier_version_goes_on_from_its_checkpoint(stage, now):
    ((record, _),) = now(f"old-{stage}").values()
    told = record["files"][f"old-{stage}/run.json"]
    assert record["status"] == 0 and told["resumed_from"] == "checkpoint-2" and told["steps"] > 2


def test_each_run_has_its_record_and_each_record_its_run():
    assert {path.stem for path in FIXTURES.glob("*.json")} == {*CHAINS}
    assert {name for chain in CHAINS for name in recorded(chain)} == {run.name for run in RUNS}
    assert len({run.name for run in RUNS}) == len(RUNS)


def subcommands(*before):
    """Whatever begins a line of a help and has a help of its own, however the help is laid out."""
    words = re.findall(r"^[^\w\n-]*([a-z]\w+)\b", run([*before, "--help"])[1], re.MULTILINE)
    return {word for word in words if word != "help" and run([*before, word, "--help"])[0] == 0}


def test_every_command_has_its_runs():
    commands, tasks = subcommands(), subcommands("eval")
    assert {"sft", "ppo", "eval", "doctor"} <= commands and {"coqa", "compare", "suite"} <= tasks
    words = [run.argv for run in RUNS]
    for command in [*([name] for name in commands), *(["eval", name] for name in tasks)]:
        at = len(command)
        mine = [argv for argv in words if argv[:at] == command]
        assert [*command, "--help"] in mine and len(mine) >= 3, command


def test_a_difference_is_found_and_rounding_is_none():
    old = {"status": 0, "files": {"a.json": {"loss": 1.0, "names": ["x"], "left": None}}}
    assert not compare(old, {"status": 0, "files": {"a.json": {"loss": 1.0004, "names": ["x"], "left": None}}}, "")
    for changed in ({"loss": 1.002}, {"names": ["y"]}, {"names": []}, {"left": 0}, {"more": 1}):
        assert len(compare(old, {"status": 0, "files": {"a.json": old["files"]["a.json"] | changed}}, "")) == 1
    assert len(list(differences({"a": True}, {"a": 1}))) == 1
    told = ["line 2", "learning_rate", "no-answers.jsonl"]
    assert not missing(told, 'Line 2 is line 2 of "no-answers.jsonl": `--learning-rate`.')
    assert missing(told, "line 21 of no-answers.json") == told
