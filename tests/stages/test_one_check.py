"""A row is checked once on its way from a file into a model; rows from Python are checked by the trainers."""

import copy
from collections import Counter

import pytest

from rlhf_kit.data import chat, formats
from rlhf_kit.data.loading import checked, load, select, split_by_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.reward import encode_comparisons
from rlhf_kit.sft import encode_demonstrations

KINDS = ("demonstrations",)


@pytest.fixture
def checks(monkeypatch):
    """How many rows of each kind have been checked; the checks are made as ever."""
    counts = Counter()

    def counted(kind, check):
        def of_row(row):
            counts[kind] += 1
            return check(row)

        return of_row

    for kind, check in formats.CHECKS.items():
        monkeypatch.setitem(formats.CHECKS, kind, counted(kind, check))
    return counts


@pytest.mark.parametrize(
    "name,kind,data,rows", [("sft", *KINDS, "demonstrations", 12), ("reward", "ranked", "ranked", 8),
                            ("ppo", "prompts", "ranked", 8)]
)  # fmt: skip
@pytest.mark.parametrize("most", [None, 4])
def test_a_stage_checks_each_row_once(name, kind, data, rows, most, stage, checks, request, tmp_path):
    more = ["--eval_dataset_name", request.getfixturevalue(data)]
    more += [] if most is None else ["--max_train_samples", most, "--max_eval_samples", most, "--dry_run"]
    assert stage(name, tmp_path / "run", *more) == 0
    assert checks == {kind: 2 * rows}  # those to train on and those to evaluate on


def test_what_is_made_of_checked_rows_is_checked(demonstrations, checks):
    dataset, _ = load(str(demonstrations), KINDS)
    assert checks.total() == 12
    assert checked(dataset, KINDS, "rows") == (dataset.to_list(), *KINDS, {})
    assert len(checked(select(dataset, [3, 4]), KINDS, "rows")[0]) == 2
    for part in split_by_prompt(dataset, 4, seed=0):
        checked(part, KINDS, "rows")
    dataset.set_format("torch")  # of what is shown, not of what is held
    checked(dataset, KINDS, "rows")
    assert checks.total() == 12
    dataset.reset_format()
    made = {
        "map": dataset.map(lambda row: {"messages": row["messages"][:1]}),
        "filter": dataset.filter(lambda row: True),
        "select": dataset.select([0]),
        "rename": dataset.rename_column("messages", "turns").rename_column("turns", "messages"),
        "format": dataset.with_format("numpy"),
        "copy": copy.copy(dataset),
        "deep copy": copy.deepcopy(dataset),
        "list": dataset.to_list(),
    }
    for how, rows in made.items():
        before = checks.total()
        if how == "map":
            with pytest.raises(UserError, match="12 faults in 12 rows.*\n.*has no assistant turn"):
                encode_demonstrations(rows, None, None)
        else:
            checked(rows, KINDS, "rows")
        assert checks.total() == before + len(rows), how


def test_checked_rows_of_one_kind_are_checked_as_another(ranked, checks, tokenizer):
    dataset, _ = load(str(ranked), ("ranked", "pairs"))
    with pytest.raises(UserError, match="`prompt`, `completions`.*needed: `messages`"):
        encode_demonstrations(dataset, tokenizer, None)
    assert checked(dataset, ("prompts", "ranked"), "rows")[1] == "prompts"
    assert checks == {"ranked": 8, "prompts": 8}
    encode_comparisons(dataset, tokenizer, None)
    assert checks == {"ranked": 8, "prompts": 8}


@pytest.mark.parametrize("name", ["reward", "ppo"])
@pytest.mark.parametrize("more", [[], ["--dry_run"]], ids=str)
def test_a_stage_encodes_each_prompt_once(name, more, stage, monkeypatch, tmp_path):
    """By the turns of the plain-text template: one a prompt, of 8."""
    turns, turn_ids = [], chat._turn_ids

    def counted(tokenizer, message):
        turns.append(message)
        return turn_ids(tokenizer, message)

    monkeypatch.setattr(chat, "_turn_ids", counted)
    assert stage(name, tmp_path / "run", *more) == 0
    assert [turn["content"] for turn in turns] == [f"say {at}" for at in range(8)]


def test_the_row_of_a_long_prompt_is_that_of_the_data(tokenizer):
    rows = [{"prompt": "cat " * size} for size in (40, 1, 20, 1)]
    told = []
    encoded = [len(row["prompt_ids"]) for row in encode_prompts(rows, tokenizer, 4, None)]
    with pytest.raises(UserError, match=f"1 of 3 prompts are too long. The longest, row 3, has {encoded[2]} tokens"):
        encode_prompts(rows, tokenizer, 4, encoded[2] + 3, max_prompt_length=encoded[2], tell=told.append)
    assert told == [f"train_dataset: 1 of 4 prompts, of more than {encoded[2]} tokens, are left out"]
    kept = encode_prompts(rows, tokenizer, 4, encoded[2] + 4, max_prompt_length=encoded[2])
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in rows[1:]]
    assert encode_prompts(kept, tokenizer, 4, 8) is kept  # encoded once
    with pytest.raises(
        UserError, match="max_completion_length 4 leaves no room for a prompt in the context of 4 tokens"
    ):
        encode_prompts(rows, tokenizer, 4, 4)
