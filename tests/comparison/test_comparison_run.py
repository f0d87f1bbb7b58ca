"""Two methods on a tiny model, end to end: made once, resumed cell by cell, told by name where one fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_kit.comparison.apart import Warm
from rlhf_kit.comparison.cells import by_content
from rlhf_kit.comparison.config import CompareOptions, read_entries
from rlhf_kit.comparison.methods import STAGES
from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.inputs import read_yaml
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.options.reading import read_record
from rlhf_kit.pages.shell import document
from rlhf_kit.stages.run import config_record
from rlhf_kit.storage import Folder
from rlhf_kit.versions import versions

ROOT = Path(__file__).parents[2]
PPO = {
    "rollout_batch_size": 4, "mini_batch_size": 4, "num_ppo_epochs": 1, "total_episodes": 4,
    "per_device_train_batch_size": 4, "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tokenizer_folder, tmp_path_factory):
    """A folder with a policy, a reward model, prompts and the YAML of a comparison of the two."""
    folder = tmp_path_factory.mktemp("comparison")
    tokenizer = set_chat_template(load_tokenizer(tokenizer_folder))
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    for name, kind in {"policy": GPT2LMHeadModel, "judge": GPT2ForSequenceClassification}.items():
        config = GPT2Config(
            n_layer=1, n_embd=16, n_head=2, n_positions=64, vocab_size=len(tokenizer), bos_token_id=end,
            eos_token_id=end, pad_token_id=end, num_labels=1, initializer_range=0.3,
        )  # fmt: skip
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": [{"role": "user", "content": f"say {'cat ' * (at % 4)}"}]} for at in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written(folder, strengths=[0.1])
    return folder


def written(folder, **ppo):
    options = {
        "model_name_or_path": str(folder / "policy"), "reward_model": str(folder / "judge"),
        "prompts": str(folder / "prompts.jsonl"), "heldout_prompts": str(folder / "prompts.jsonl"),
        "truth": "tests.rewards:brief", "seeds": [0, 1], "tuning_trials": 3, "max_completion_length": 6,
        "temperature": 1.0,
        "methods": [{"method": "ppo", "options": PPO, **ppo}, {"method": "best_of_n", "strengths": [3]}],
    }  # fmt: skip
    (folder / "compare.yaml").write_text(json.dumps(options))


def compare(folder, *more):
    command = [sys.executable, "-m", "rlhf_kit", "compare-methods", "--config", str(folder / "compare.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [*command, "--output_dir", str(folder / "out"), *more]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_a_comparison_is_made_resumed_and_made_anew_where_an_option_changes(place):
    dry = compare(place, "--dry_run")
    assert dry.returncode == 0 and "ppo: kl_coef 0.1" in dry.stdout and not (place / "out").exists(), dry.stderr
    first = compare(place)
    assert first.returncode == 0, first.stderr
    out = place / "out"
    record = json.loads((out / "comparison.json").read_text())
    start, ppo, best = record["rows"]
    assert [(row["entry"], row["strength"], row["seeds"]) for row in record["rows"]] == [
        ("start", None, [0, 1]), ("ppo", 0.1, [0, 1]), ("best_of_n", 3, [0, 1]),
    ]  # fmt: skip
    assert start["figures"]["kl"]["value"] == 0 and start["training"] == 0 == best["training"]
    assert ppo["figures"]["kl"]["value"] != 0 and ppo["training"] > ppo["answering"] > 0
    assert best["figures"]["kl"]["value"] == pytest.approx(1.0986 - 2 / 3, abs=1e-3)
    assert best["figures"]["score"]["value"] > start["figures"]["score"]["value"]
    assert 2.5 < best["answering"] / start["answering"] < 6.5  # three answers, and what scores them
    assert all(row["memory"] > 2**26 and row["seconds"] > 0 for row in record["rows"]) and not record["failed"]
    run = json.loads((out / "ppo" / "kl_coef-0.1" / "seed-1" / "model" / "run.json").read_text())
    assert run["seed"] == 1 and run["config"]["kl_coef"] == 0.1 and run["work"]["flops"] > 0
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2 and "3, the same for all" in page and "tests.rewards:brief" in page
    assert (
        "| ppo, kl\\_coef 0.1 |" in (out / "table.md").read_text()
        or "ppo, kl_coef 0.1" in (out / "table.md").read_text()
    )

    before = states(out)
    again = compare(place)
    assert again.returncode == 0 and "[" not in again.stderr, again.stderr
    after = states(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"table.md", "report.html", "comparison.json", ".rlhf_kit"}

    config = out / "ppo" / "kl_coef-0.1" / "seed-0" / "model" / "config.json"
    text = config.read_text()
    config.write_text(text + " ")  # no longer what the run has written: nothing is measured of it, nor removed
    meddled = compare(place)
    assert meddled.returncode == 1 and "ppo, kl_coef-0.1, seed 0 failed" in meddled.stderr
    assert config.read_text() == text + " "
    config.write_text(text)

    written(place, strengths=[0.1], options={**PPO, "learning_rate": 0.02})
    anew = compare(place)
    assert anew.returncode == 0, anew.stderr
    made = [line for line in anew.stderr.splitlines() if line.startswith("[")]
    assert len(made) == 4 and all("ppo, kl_coef-0.1" in line for line in made)  # trained and measured, of two seeds


def test_a_cell_that_fails_is_told_and_the_table_is_without_it(place):
    written(place, strengths=[0.1], options={**PPO, "max_prompt_length": 1})
    refused = compare(place, "--output_dir", str(place / "new"))
    assert refused.returncode == 2 and "ppo: " in refused.stderr and not (place / "new").exists()
    written(place, strengths=[0.1], options={**PPO, "learning_rate": 1e30, "total_episodes": 8})
    ended = compare(place)
    assert ended.returncode == 1 and "ppo, kl_coef-0.1, seed 0 failed" in ended.stderr
    record = json.loads((place / "out" / "comparison.json").read_text())
    assert [row["entry"] for row in record["rows"]] == ["start", "best_of_n"]
    assert {*record["failed"]} == {"ppo, kl_coef-0.1, seed 0", "ppo, kl_coef-0.1, seed 1"}
    assert "ppo, kl_coef-0.1, seed 1: not in the table" in (place / "out" / "report.html").read_text()
    assert "not in the table" in ended.stdout


def test_it_begins_from_nothing_with_peoples_rankings_for_the_truth(place):
    """SFT, reward model and judge are made; in a demo's folder its page leads to ours."""
    home = place / "demo"
    rows = [{"prompt": "say " + "cat " * (at % 3), "completion": "the dog " * (1 + at % 2)} for at in range(6)]
    (place / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, answers in {"rankings": ["cat", "a dog", "mat"], "people": ["dog", "mat so"]}.items():
        rows = [{"prompt": [{"role": "user", "content": f"say {at}"}], "completions": answers} for at in range(4)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = {"max_steps": 2, "per_device_train_batch_size": 2}
    options = {
        "model_name_or_path": str(place / "policy"), "heldout_prompts": str(place / "prompts.jsonl"),
        "sft": {"dataset_name": str(place / "demonstrations.jsonl"), **short}, "reward": short,
        "rankings": str(place / "rankings.jsonl"), "truth_rankings": str(place / "people.jsonl"), "seeds": [0],
        "tuning_trials": 1, "max_completion_length": 6,
        "methods": [{"method": "dpo", "strengths": [0.1], "options": {**short, "learning_rate": 0.001}}],
    }  # fmt: skip
    (place / "compare.yaml").write_text(json.dumps(options))
    Folder(home, "demo").write("report.html", document("demo", ["<h1>demo</h1>"]))
    ended = compare(place, "--output_dir", str(home / "compare"))
    assert ended.returncode == 0, ended.stderr
    record = json.loads((home / "compare" / "comparison.json").read_text())
    assert [row["entry"] for row in record["rows"]] == ["start", "dpo"] and 0 <= record["judge_accuracy"] <= 1
    assert (
        json.loads((home / "compare/start/judge/model/run.json").read_text())["metrics"]["eval_accuracy"] is not None
    )
    assert "people&#x27;s held-out rankings" in (home / "compare" / "report.html").read_text()
    assert 'href="compare/report.html"' in (home / "report.html").read_text()


def test_what_a_yaml_says_decides_a_cell_and_where_it_lies_does_not(tmp_path):
    file, other = tmp_path / "a.yaml", tmp_path / "b.yaml"

    def decides(path, rate):
        path.write_text(f"learning_rate: {rate}\n")
        options = {"config": str(path), "model_name_or_path": "M", "dataset_name": "D", "output_dir": "O"}
        return by_content(config_record(STAGES["dpo"].settings(options)))

    assert decides(file, 0.1) == decides(other, 0.1) != decides(other, 0.2)
    for path in (file, other):
        path.write_text("same")
    assert by_content({"dataset_name": str(file)}) == by_content({"dataset_name": str(other)})
    other.write_text("new")
    assert by_content([str(file)]) != by_content([str(other)]) and by_content("world") == "world"


def states(folder) -> dict:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- a process for each piece of work -------------------------------------------------------------------------------


def test_work_is_done_apart_and_its_memory_is_its_own(tmp_path):
    with Warm("tests.comparison.apart_work") as warm:
        light = warm.run("double", {"number": 21}, tmp_path / "log.txt")
        heavy = warm.run("hold", {"megabytes": 200}, tmp_path / "log.txt")
        again = warm.run("double", {"number": 1}, tmp_path / "log.txt")
        refused = warm.run("refuse", {}, tmp_path / "log.txt")
        crashed = warm.run("crash", {}, tmp_path / "log.txt")
        killed = warm.run("die", {}, tmp_path / "log.txt")
        assert warm.run("double", {"number": 2}, tmp_path / "log.txt").value == 4  # and goes on
    assert (light.value, light.fault) == (42, None) and again.value == 2
    assert heavy.memory - light.memory > 180 * 2**20 and abs(again.memory - light.memory) < 20 * 2**20
    assert refused.fault == "not that" and crashed.fault == "ZeroDivisionError: division by zero"
    assert "signal 9" in killed.fault
    log = (tmp_path / "log.txt").read_text()
    assert "doubling 21" in log and "Traceback" in log


def test_a_folder_called_as_the_package_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "rlhf_kit").mkdir()
    (tmp_path / "rlhf_kit" / "__init__.py").touch()
    (tmp_path / "mine.py").write_text("from rlhf_kit.versions import versions\n")
    monkeypatch.chdir(tmp_path)
    with Warm("mine") as warm:
        outcome = warm.run("versions", {}, tmp_path / "log.txt")
    assert outcome.fault is None and outcome.value == versions()


def test_the_worlds_recipe_is_read_as_it_stands():
    argv = ["--config", "world/compare-methods", "--output_dir", "out"]
    entries = read_entries(read_record("compare-methods", CompareOptions, argv))
    assert len({entry.name for entry in entries}) == len(entries) >= 2
    assert all(len(entry.strengths) >= 3 for entry in entries)
    assert read_yaml(ROOT / "rlhf_kit/stages/recipes/world/compare-methods.yaml")["seeds"] == [0, 1, 2]
