"""`rlhf-kit collect`: K answers a prompt, mixed, merged, resumed; and what is trained and measured from them."""

import json
from collections import Counter

import pytest
from feedback.test_asking import Typist
from stores import new_name

from rlhf_kit.cli import main
from rlhf_kit.data.labels.store import Answer, open_store
from rlhf_kit.feedback.assignment import next_assignment, policy_of
from rlhf_kit.feedback.collecting import CollectOptions, add, answered
from rlhf_kit.feedback.labelling import label
from rlhf_kit.terminal.console import Console

SHORT = ["--max_completion_length", "6"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the {word}"}) + "\n" for word in ("cat", "dog", "mat", "cat")))
    return path


@pytest.fixture
def models(tmp_path, policy, tokenizer):
    folders = []
    for name in ("one", "two"):
        policy.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    return folders


def collected(models, prompts, name, *more) -> int:
    return main(["collect", "--models", *models, "--prompts", str(prompts), "--output_file", name, *SHORT, *more])


def test_each_prompt_has_answers_of_all_models_and_temperatures(models, prompts, tmp_path, capsys):
    name = new_name(tmp_path)
    assert collected(models, prompts, name, "--k", "8", "--temperatures", "0.8", "1.2") == 0
    store = open_store(name)
    tasks = list(store.tasks("ranking").values())
    assert [task.prompt for task in tasks] == ["the cat", "the dog", "the mat"]  # the fourth is the first
    for task in tasks:
        sources = Counter((source["model"], source["temperature"]) for one in task.answers for source in one.sources)
        assert set(sources) <= {(model, heat) for model in models for heat in (0.8, 1.2)} and len(sources) >= 3
        texts = [answer.text for answer in task.answers]
        assert len(set(texts)) == len(texts) >= 2 and all(text.strip() for text in texts)
    assert "3 tasks added" in capsys.readouterr().out
    assert policy_of(store).minimum == 1


def test_the_same_command_asks_nothing_again_and_others_add(models, prompts, tmp_path, capsys):
    name = new_name(tmp_path)
    for more, said in (([], "3 tasks added to 0"), ([], "0 tasks added to 3"), (["--seed", "1"], "tasks added to 0")):
        assert collected(models[:1], prompts, name, *more) == 0
        assert said in capsys.readouterr().out
    assert len(open_store(name).tasks()) > 3


def test_what_an_interrupted_run_left_is_gone_on_with(models, prompts, tmp_path, monkeypatch, capsys):
    name = new_name(tmp_path)
    kept = []

    def interrupted(store, kind, prompt, answers):
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.append(prompt)
        return add(store, kind, prompt, answers)

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_kit.feedback.collecting.add", interrupted)
        assert collected(models, prompts, name, "--batch_size", "4") == 130
    assert len(open_store(name).tasks()) == 1
    assert collected(models, prompts, name, "--batch_size", "4") == 0
    assert [task.prompt for task in open_store(name).tasks().values()] == ["the cat", "the dog", "the mat"]


def test_thumbs_are_tasks_of_one_answer(models, prompts, tmp_path):
    name = new_name(tmp_path)
    assert collected(models[:1], prompts, name, "--kind", "thumbs", "--k", "2") == 0
    store = open_store(name)
    assert {len(task.answers) for task in store.tasks("thumbs").values()} == {1} and not store.tasks("ranking")
    assert 3 <= len(store.tasks("thumbs")) <= 6


def test_a_list_of_equal_answers_is_left_out(tmp_path):
    store = open_store(new_name(tmp_path), create=True)
    assert sum(add(store, "ranking", "P", [Answer("a"), Answer("a")]).values()) == 1 and not store.tasks()
    source = [{"settings": "x"}]
    add(store, "ranking", "P", [Answer("a", source), Answer("b", source)])
    assert answered(store, "ranking", "x") and not answered(store, "ranking", "y")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "1"], "--k is 1; a ranking needs 2"),
        (["--temperatures", "0"], "must be above 0"),
        (["--limit", "0"], "--limit=0 must be at least 1"),
        (["--minimum", "0"], "--minimum=0 must be at least 1"),
        (["--overlap_share", "2"], "must lie between 0 and 1"),
        (["--max_completion_length", "100000"], "too long"),
        (["--output_file", "none/labels.db"], "no folder none"),
    ],
)
def test_what_cannot_be_collected_is_refused(models, prompts, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    assert collected(models[:1], prompts, "labels.db", *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    if "too long" not in message:
        assert not (tmp_path / "labels.db").exists()


def test_a_dry_run_writes_nothing(models, prompts, tmp_path, capsys):
    assert collected(models, prompts, str(tmp_path / "labels.db"), "--dry_run") == 0
    assert "3 prompts" in capsys.readouterr().out and not (tmp_path / "labels.db").exists()


def test_a_model_that_is_not_there_is_refused_before_the_store_is_made(prompts, tmp_path, capsys):
    assert collected([str(tmp_path / "none")], prompts, str(tmp_path / "labels.db")) == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "labels.db").exists()


def test_the_options_are_those_of_the_help():
    assert CollectOptions().k == 4 and CollectOptions().temperatures == [1.0]


def test_people_rank_and_a_reward_model_is_trained_on_it(models, prompts, tmp_path, capsys):
    """From the prompts to a reward model, an SFT model and a measurement, all from the store."""
    name = new_name(tmp_path)
    assert collected(models, prompts, name, "--overlap_share", "1", "--k", "3") == 0
    store = open_store(name)
    for labeler in ("amy", "bob"):
        number, policy = store.add_labeler(labeler), policy_of(store)
        assert next_assignment(store, number, "ranking", policy) is not None
        label(store, number, "ranking", Console(quiet=True), Typist(*["", ""] * 3))
    assert len(store.decisions()) == 6
    quiet = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--disable_tqdm", "--report_to", "none"]
    reward = str(tmp_path / "reward")
    assert main(["reward", "--model", models[0], "--data", name, "--output", reward, *quiet]) == 0
    assert main(["sft", "--model", models[0], "--data", name, "--output", str(tmp_path / "sft"), *quiet]) == 0
    assert main(["eval", "reward", "--model", reward, "--data", name, "--output", str(tmp_path / "measured")]) == 0
    found = json.loads((tmp_path / "measured" / "results.json").read_text())
    assert found["details"]["ceiling"]["labelers"] == 2 and found["settings"]["data"] == name
