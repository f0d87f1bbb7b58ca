"""docs/architecture.md: the drawing is that of the imports, every named place is there, and the walks are walked."""

import ast
import doctest
import json
import re
import sys
from types import SimpleNamespace

import drawing
import pytest
import torch
from imports import ROOT

from rlhf_kit.cli import main
from rlhf_kit.stages.advice import after_end
from tests.tiny_stages import PPO, QUIET

PAGES = [drawing.PAGE, ROOT / "CONTRIBUTING.md"]
PLACE = re.compile(r"`([\w./-]+\.py)::([\w.]+)`")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def test_the_drawing_and_the_table_are_those_of_the_imports():
    text = drawing.PAGE.read_text(encoding="utf-8")
    assert drawing.replaced(text) == text, "run python tests/drawing.py --write"


def test_the_drawing_leaves_out_what_a_longer_way_says():
    assert doctest.testmod(drawing).failed == 0
    edges = {"cli": {"ppo", "errors", "storage"}, "ppo": {"storage"}, "storage": {"errors"}, "errors": set()}
    arrows = [line.strip() for line in drawing.mermaid(edges).splitlines() if "-->" in line]
    assert arrows == ["cli --> ppo", "ppo --> ground", "storage --> errors"]


def test_every_folder_says_what_it_is_for():
    names = drawing.folders(drawing.graph())
    assert not [name for name in names if not drawing.purpose(name)]


def named(tree: ast.AST, name: str) -> list[ast.AST]:
    """The definitions of a dotted name: functions, classes, assignments, fields."""
    bodies = [tree]
    for part in name.split("."):
        bodies = [
            node
            for body in bodies
            for node in getattr(body, "body", ())
            if part == getattr(node, "name", None)
            or isinstance(node, ast.AnnAssign)
            and part == getattr(node.target, "id", None)
            or isinstance(node, ast.Assign)
            and part in [getattr(target, "id", None) for target in node.targets]
        ]
    return bodies


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_place_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    places = PLACE.findall(text)
    lost = [f"{path}::{name}" for path, name in places if not (ROOT / path).is_file()]
    trees = {path: ast.parse((ROOT / path).read_text()) for path, _ in places if (ROOT / path).is_file()}
    lost += [f"{path}::{name}" for path, name in places if path in trees and not named(trees[path], name)]
    paths = re.findall(r"`([\w.-]+/[\w./-]+\.\w+|[\w.-]+/[\w./-]*/)`", text)
    lost += [path for path in paths if not (ROOT / path).exists()]
    assert len(places) >= 10 and not lost, lost


# --- the walks ------------------------------------------------------------------------------------------------------


def walk(title: str) -> list[str]:
    """The functions of a walk, in the order of its steps; every step names one."""
    section = drawing.PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)
    firsts = [PLACE.search(step) for step in steps]
    assert len(steps) >= 5 and all(firsts), steps
    for path, name in (first.groups() for first in firsts):
        assert all(isinstance(node, FUNCTIONS) for node in named(ast.parse((ROOT / path).read_text()), name)), name
    return [f"{first[1]}::{first[2]}" for first in firsts]


def calls_of(argv: list[str]) -> list[str]:
    """The functions of the kit that a command calls, in the order of their first calls."""
    calls: dict[str, None] = {}
    prefix = f"{ROOT}/"

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            calls.setdefault(f"{code.co_filename.removeprefix(prefix)}::{code.co_qualname}")

    sys.setprofile(note)
    try:
        assert main(argv) == 0
    finally:
        sys.setprofile(None)
    return [*calls]


def assert_walked(title: str, calls: list[str]):
    steps = walk(title)
    assert [step for step in steps if step not in calls] == []
    assert sorted(steps, key=calls.index) == steps


@pytest.fixture
def folder(policy, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    prompts = [[{"role": "user", "content": f"say {at}"}] for at in range(4)]
    rows = [{"prompt": prompt, "completions": ["cat", "a dog", "mat"], "ranks": [1, 2, 2]} for prompt in prompts]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_prompt_reaches_ppos_loss_and_an_option_its_trainer(folder):
    (folder / "ppo.yaml").write_text(f"model_name_or_path: {folder}/base\ncliprange: 0.1\n")
    data = ["--dataset_name", f"{folder}/ranked.jsonl", "--output_dir", f"{folder}/ppo"]
    argv = ["ppo", "--config", f"{folder}/ppo.yaml", *data, *PPO, *QUIET]
    calls = calls_of(argv)
    assert_walked("A prompt to PPO's loss", calls)
    assert_walked("A YAML option to the trainer", calls)


def test_a_ranked_list_reaches_its_loss(folder):
    data = ["--dataset_name", f"{folder}/ranked.jsonl", "--output_dir", f"{folder}/reward", "--max_steps", "1"]
    argv = ["reward", "--model_name_or_path", f"{folder}/base", *data, *QUIET]
    assert_walked("A ranked list to its loss", calls_of(argv))


def test_a_coqa_question_reaches_its_score(folder):
    turn = {"input_text": "who sat?", "turn_id": 1}
    story = {"id": "a", "source": "cnn", "story": "the cat sat", "questions": [turn], "answers": [turn]}
    (folder / "coqa.json").write_text(json.dumps({"data": [story]}))
    argv = ["eval", "coqa", "--model", f"{folder}/base", "--data", f"{folder}/coqa.json"]
    torch.manual_seed(0)
    assert_walked("A CoQA question to its score", calls_of(argv))


def test_a_new_stage_needs_no_row_in_the_table_of_what_comes_next():
    records = {"training": SimpleNamespace(output_dir="runs/a"), "model": SimpleNamespace(model_name_or_path="gpt2")}
    assert "rlhf-kit eval suite --models runs/a " in after_end(SimpleNamespace(stage="dpo", **records))
