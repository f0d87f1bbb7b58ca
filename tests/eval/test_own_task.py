"""A task of the user's own, as docs/tasks.md has it, is run by `module:Class` and by a suite's entry."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_kit.cli import main
from rlhf_kit.models.checkpoints import load_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
TEXTS = ["Is the cat on the mat? yes", "Did the dog sit? no", "Is the cat a dog? no"]


@pytest.fixture
def place(tmp_path, monkeypatch, policy, tokenizer_folder):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "yes_no.py").write_text(program, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    policy.save_pretrained(tmp_path / "model")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


RUN = ["eval", "yes_no:YesNo", "--model", "model", "--data", "rows.jsonl"]


def test_the_task_of_the_page_is_measured_resumed_and_checked(place, capsys):
    assert main([*RUN, "--output", "out", "--dry_run"]) == 0 and not Path("out").exists()
    assert main([*RUN, "--output", "out"]) == 0
    results = json.loads(Path("out/results.json").read_text())
    assert results["settings"]["task"] == "yes-no" and results["n"]["items"] == 3
    answers = [json.loads(line)["answer"] for line in Path("out/items.jsonl").read_text().splitlines()]
    right = [answer == text.split()[-1] for answer, text in zip(answers, TEXTS, strict=True)]
    assert results["scores"]["acc"] == pytest.approx(100 * sum(right) / 3)
    assert main([*RUN, "--output", "out"]) == 0
    assert json.loads(Path("out/results.json").read_text())["resumed"] == 3
    capsys.readouterr()
    assert main([*RUN, "--output", "out", "--cue", "A:"]) == 2  # an option of its own decides the outputs
    assert "option cue 'Answer:', now 'A:'" in capsys.readouterr().err


def test_its_options_are_read_strictly_and_shown(place, capsys):
    assert main([*RUN, "--cua", "A:"]) == 2
    assert "--cua: no such option. Did you mean 'cue'?" in capsys.readouterr().err
    assert main(["eval", "yes_no:YesNo", "--help"]) == 0
    assert "--cue" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, message",
    [
        ("yes_no:YesN", "'YesN' does not exist in 'yes_no'. Did you mean 'YesNo'?"),
        ("nowhere:YesNo", "importing 'nowhere' failed with ModuleNotFoundError"),
        ("yes_no:ANSWERS", "is not a subclass of rlhf_kit.eval.task.Task"),
    ],
)
def test_a_task_that_is_none_is_named(place, capsys, name, message):
    assert main(["eval", name, *RUN[2:]]) == 2
    assert message in capsys.readouterr().err


def test_a_suite_may_hold_it(place):
    entry = {"name": "mine", "command": "yes_no:YesNo", "options": {"data": "rows.jsonl"}, "figure": "acc"}
    Path("s.yaml").write_text(json.dumps([{**entry, "higher_is_better": True}]))
    assert main(["eval", "suite", "--models", "m=model", "--suite", "s.yaml", "--output", "out"]) == 0
    assert json.loads(Path("out/suite.json").read_text())["values"][0]["entry"] == "mine"


def test_a_name_in_the_table_is_all_that_a_task_of_the_kit_needs():
    code = (
        "from rlhf_kit.eval.commands import TASKS\n"
        "TASKS['haiku'] = ('Haiku', '俳句', 'rlhf_kit.eval.mc:MC')\n"
        "from rlhf_kit.cli import main\n"
        "raise SystemExit(main(['eval', 'haiku', '--help']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "rlhf-kit eval haiku --model_name_or_path" in ended.stdout and "--prompt_file" in ended.stdout


def test_a_task_of_the_kit_does_not_search_the_current_folder(tmp_path):
    code = (
        "import os, sys\n"
        "from rlhf_kit.eval.commands import task_named\n"
        "task_named('mc')\n"
        "raise SystemExit(os.getcwd() in sys.path)"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path)
    assert ended.returncode == 0


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("icl", {"tasks": ["2D+"], "models": []}, "--models is missing"),
        ("tldr", {"dataset_name": "rows.jsonl", "models": []}, "--models is an empty list"),
        ("icl", {"tasks": ["2D+"], "models": ["model"], "shots": []}, "--shots is an empty list"),
    ],
)
def test_an_empty_list_is_refused_and_measures_nothing(place, capsys, task, options, message):
    Path("rows.jsonl").write_text(json.dumps({"text": "the cat sat. so did the dog.", "summary": "the cat"}) + "\n")
    Path("options.yaml").write_text(json.dumps(options))
    assert main(["eval", task, "--config", "options.yaml", "--output", "out"]) == 2
    assert message in capsys.readouterr().err and not Path("out").exists()
