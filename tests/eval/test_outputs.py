"""No measurement writes over what is not its own: every command, into a project folder that has files of its names."""

import json
from pathlib import Path

import pytest

from rlhf_kit import world
from rlhf_kit.cli import main
from rlhf_kit.eval import results
from tests.eval import toy
from tests.tiny_stages import run_command
from tests.victims import every_byte, project

BASE = str(world.BASE)
COMMANDS = {
    "reward": ["--model", "judge", "--data", "world:ranked", "--limit", "1"],
    "coqa": ["--model", BASE, "--data", "world:conversations", "--limit", "1"],
    "extractive": [
        "--model",
        BASE,
        "--data",
        "world:squad_zh",
        "--scorer",
        "drcd",
        "--max-length",
        "64",
        "--limit",
        "1",
    ],
    "transfer": ["--model-set", "world"],
    "icl": ["--models", BASE, "--tasks", "world", "--shots", "0", "--limit", "1"],
    "perplexity": ["--model", BASE, "--data", "world:text"],
    "suite": ["--models", f"base={BASE}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_users_folder_is_refused_and_stays(command, tmp_path, monkeypatch, capsys):
    folder = project(tmp_path / "project")
    toy.save_model(tmp_path / "judge")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    before = every_byte(tmp_path)
    for output in (str(folder), "project/", "link"):
        assert main(["eval", command, *COMMANDS[command], "--output", output]) == 2
        said = capsys.readouterr().err
        assert "would be overwritten" in said or "does not hold the settings of a run" in said, said
        assert every_byte(tmp_path) == before


ELSE = "holds the results of another task or protocol"
FOREIGN = {"report.html": "report.html in", "results.json": ELSE, "items.jsonl": ELSE}


@pytest.mark.parametrize("taken", FOREIGN)
def test_one_foreign_file_is_enough_and_another_commands_is_foreign(taken, tmp_path, monkeypatch, capsys):
    toy.save_model(tmp_path / "judge")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / taken).write_text("mine")
    assert main(["eval", "reward", *COMMANDS["reward"], "--output", str(out)]) == 2
    assert FOREIGN[taken] in capsys.readouterr().err and (out / taken).read_text() == "mine"
    assert [path.name for path in out.iterdir()] == [taken]  # refused before anything is measured


def test_a_reward_models_results_of_an_earlier_version_stay(tmp_path, monkeypatch, capsys):
    toy.save_model(tmp_path / "judge")
    monkeypatch.chdir(tmp_path)
    old = {"items.jsonl": '{"row": 0, "scores": [1.0, 0.0]}\n', "report.html": "<p>", "results.json": '{"seed": 0}\n'}
    for name, text in old.items():
        results.write(tmp_path / "out" / name, text, "reward")
    before = every_byte(tmp_path)
    assert main(["eval", "reward", *COMMANDS["reward"], "--output", "out"]) == 2
    assert "'out' holds the results of another task or protocol; give another folder" in capsys.readouterr().err
    assert main(["eval", "compare", "out", "out"]) == 2
    assert "has no scores item by item (an earlier version's `eval reward` wrote none)" in capsys.readouterr().err
    assert every_byte(tmp_path) == before


def data(folder: Path, name: str = "data.jsonl") -> Path:
    path = folder / name
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}
    path.write_text(json.dumps(row) + "\n")
    return path


def test_scores_never_replace_their_data_or_a_foreign_file(tmp_path, monkeypatch, capsys):
    folder = project(tmp_path / "project")
    rows = data(folder)
    (folder / "hard.jsonl").hardlink_to(rows)
    (folder / "soft.jsonl").symlink_to(rows)
    monkeypatch.chdir(folder)
    before = every_byte(tmp_path)
    own = ("data.jsonl", rows, "hard.jsonl", "soft.jsonl", "../project/data.jsonl")
    for output in (*own, "config.json", "README.md", "away/model.safetensors", "runs"):
        assert run_command("score", ["--model", BASE, "--data", str(rows), "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert ("is the file of --data" in said) == (output in own) and every_byte(tmp_path) == before


def test_converting_replaces_only_what_it_wrote(tmp_path, monkeypatch, capsys):
    folder = project(tmp_path / "project")
    rows = data(folder)
    (folder / "hard.jsonl").hardlink_to(rows)
    (folder / "soft.jsonl").symlink_to(rows)
    monkeypatch.chdir(folder)
    before = every_byte(tmp_path)
    for target in ("data.jsonl", "./data.jsonl", "hard.jsonl", "soft.jsonl", "config.json", "results.json"):
        assert run_command("convert", ["data.jsonl", target, "--from", "ranked"]) == 2
        assert every_byte(tmp_path) == before
    for _ in range(2):
        assert run_command("convert", ["data.jsonl", "new.jsonl", "--from", "ranked", "--to", "trl"]) == 0
    (folder / "new.jsonl").write_text("mine")
    assert run_command("convert", ["data.jsonl", "new.jsonl", "--from", "ranked"]) == 2
    assert "new.jsonl" in capsys.readouterr().err and (folder / "new.jsonl").read_text() == "mine"
    assert run_command("score", ["--model", BASE, "--data", "data.jsonl", "--output", "new.jsonl"]) == 2
