"""Rows handed to the trainers in Python are checked as those of a file are (issue: train-18)."""

import math

import pytest
from datasets import Dataset, IterableDataset
from trl import SFTConfig

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.reward import encode_comparisons
from rlhf_kit.sft import SFTTrainer, encode_demonstrations


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


PART = [{"type": "image", "text": None}]
TWO = {"prompt": "a", "completions": ["b", "c"]}


def as_prompts(rows, tokenizer):
    return encode_prompts(rows, tokenizer, 4, 128)


def as_comparisons(rows, tokenizer):
    return encode_comparisons(rows, tokenizer, 64, on_bad_row="error")[0]


def as_demonstrations(rows, tokenizer):
    return encode_demonstrations(rows, tokenizer, 64)[0]


@pytest.mark.parametrize(
    "read,row,told",
    [
        (
            as_prompts,
            {"query": "a", "input_ids": [1, 2]},
            "columns are `query`, `input_ids`.*Rename `query` to `prompt`",
        ),
        (as_prompts, {"input_ids": [1, 2]}, "columns are `input_ids`; needed: `prompt`"),
        (as_prompts, {"prompt": None, "answer": 4}, "columns are `answer`; needed: `prompt`"),
        (as_prompts, {"prompt": ""}, "row 1: `prompt` is empty"),
        (as_prompts, {"prompt": 4}, "row 1: `prompt` is the number 4"),
        (as_prompts, {"prompt": [user(None)]}, "row 1: `prompt`, turn 1"),
        (as_prompts, {"prompt": [user(PART)]}, "row 1: `prompt`, turn 1: `content`, part 1 is of type 'image'"),
        (as_prompts, {"prompt": [user("a"), says("b")]}, "row 1: `prompt` ends with a turn of the assistant"),
        (as_comparisons, {**TWO, "ranks": [1]}, "row 1: `ranks` has 1 entry for 2 `completions`"),
        (
            as_comparisons,
            {**TWO, "ranks": [0, 1]},
            "row 1: `ranks` holds the number 0; ranks are whole numbers from 1",
        ),
        (as_comparisons, {**TWO, "ranks": [1.5, 2]}, "row 1: `ranks` holds the number 1.5"),
        (as_comparisons, {**TWO, "ranks": [1, 2], "margin": math.nan}, "row 1: `margin` is the number nan"),
        (as_comparisons, {**TWO, "ranks": [1, 2], "weight": -1.0}, "row 1: `weight` is the number -1.0"),
        (as_comparisons, {**TWO, "ranks": [1, 2], "weight": math.inf}, "row 1: `weight` is the number inf"),
        (as_comparisons, {**TWO, "labels": [1, 0]}, "`labels` beside `completions` may be their order"),
        (as_comparisons, {"prompt": "a", "completions": ["b", None], "ranks": [1, 2]}, "answer 2 is nothing"),
        (as_comparisons, {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same text"),
        (as_comparisons, {"prompt": "a", "completion": "b", "label": 1}, "row 1: `label` is the number 1"),
        (as_comparisons, {"chosen_input_ids": [1], "rejected_input_ids": [2]}, "needed: `prompt` \\+ `completions`"),
        (as_demonstrations, {"prompt": [user("a")], "completion": [says(None)]}, "row 1: `completion`, turn 1"),
        (as_demonstrations, {"prompt": [user("a")], "completion": [says(PART)]}, "part 1 is of type 'image'"),
        (as_demonstrations, {"prompt": "a", "completion": None}, "columns are `prompt`; needed: `messages`, or"),
        (
            as_demonstrations,
            {"messages": [user("a"), {**says("b"), "weight": 0}]},
            "excludes every assistant turn from training",
        ),
        (as_demonstrations, {"messages": [user("a"), {**says("b"), "weight": 0.5}]}, "`weight` is the number 0.5"),
        (as_demonstrations, {"prompt": "a", "completion": "b", "label": False}, "`label` tells good answers from bad"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_told_of_a_dataset_and_of_a_list(read, row, told, tokenizer):
    for rows in ([row], Dataset.from_list([row])):
        with pytest.raises(UserError, match=told):
            read(rows, tokenizer)


@pytest.mark.parametrize("read", [as_prompts, as_comparisons, as_demonstrations])
def test_no_rows_and_no_dataset_are_told(read, tokenizer):
    for rows in ([], Dataset.from_list([])):
        with pytest.raises(UserError, match="holds no rows"):
            read(rows, tokenizer)
    for rows in ({"prompt": ["a"]}, IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), "rows.jsonl"):
        with pytest.raises(UserError, match="give a datasets.Dataset or a list of rows"):
            read(rows, tokenizer)
    with pytest.raises(UserError, match="row 1: is the text 'a'; a row is an object"):
        read(["a"], tokenizer)


def test_all_faults_are_told_together(tokenizer):
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": 4}]
    with pytest.raises(UserError) as error:
        as_prompts(rows, tokenizer)
    assert str(error.value).splitlines() == [
        "train_dataset: 2 faults in 3 rows; nothing was loaded. Fix these rows, or give other data.",
        "  row 2: `prompt` is empty; give some text or remove the row",
        "  row 3: `prompt` is the number 4; give a string or a list of messages",
    ]


def test_rows_as_trl_has_them_are_read(tokenizer):
    asked, said = [user("Where?")], [says("Here.")]
    one = as_demonstrations([{"messages": [*asked, *said]}], tokenizer)[:]
    assert as_demonstrations([{"prompt": asked, "completion": said}], tokenizer)[:] == one
    parts, answer = ([{"type": "text", "text": text}] for text in ("Where?", "Here."))
    assert as_demonstrations(Dataset.from_list([{"messages": [user(parts), says(answer)]}]), tokenizer)[:] == one
    two = as_comparisons([{"prompt": asked, "completions": ["Here.", "No."], "ranks": [1, 2]}], tokenizer)[:]
    for pair in (
        {"prompt": asked, "chosen": said, "rejected": [says("No.")]},
        {"chosen": [*asked, *said], "rejected": [*asked, says("No.")]},
    ):
        assert as_comparisons(Dataset.from_list([pair]), tokenizer)[:] == two
    prompt = as_prompts([{"prompt": asked}], tokenizer)[0]["prompt_ids"]
    assert as_prompts([{"messages": [*asked, *said]}], tokenizer)[0]["prompt_ids"] == prompt
    assert as_prompts(Dataset.from_list([{"prompt": [user(parts)]}]), tokenizer)[0]["prompt_ids"] == prompt


def test_nulls_of_a_table_are_no_fields(tokenizer):
    """Arrow gives each turn the keys of all others."""
    rows = [
        {"messages": [user("a"), {**says("b"), "weight": 1}], "tools": None},
        {"messages": [{**user("a"), "name": "x"}, says("c")]},
    ]
    dataset = Dataset.from_list(rows)
    assert dataset[0]["messages"][0]["name"] is None
    assert as_demonstrations(dataset, tokenizer)[:] == as_demonstrations(rows, tokenizer)[:]
    pairs = Dataset.from_list([{**TWO, "ranks": [1, 2], "weight": None}, {**TWO, "ranks": [2, 1], "weight": 2.0}])
    assert as_comparisons(pairs, tokenizer)["weight"][:] == [1.0, 2.0]


def test_wrong_rows_that_are_dropped_are_counted(tokenizer):
    rows = [
        {**TWO, "ranks": [1, 2], "margin": None},
        {**TWO, "ranks": [0, 1]},
        {**TWO, "ranks": [1]},
        {**TWO, "ranks": [1, 1]},
    ]
    rows += [{**TWO, "ranks": [2, 1], "margin": math.nan}]
    for given in (rows, Dataset.from_list(rows)):
        encoded, counts = encode_comparisons(given, tokenizer, 64)
        assert len(encoded) == 1
        assert {name: count for name, count in counts.items() if count} == {
            "lists": 5,
            "lists dropped: `ranks` that are not whole numbers from 1": 1,
            "lists dropped: `ranks` of the wrong length": 1,
            "lists dropped: wrong type": 1,
            "lists dropped: all answers tied": 1,
        }


def test_a_trainer_reads_what_load_read_without_another_word(tokenizer, tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completions": ["b", "c"], "note": 1}\n')
    rows, _ = load(str(path), ("ranked",), tell=lambda text: None)
    as_comparisons(rows, tokenizer)
    assert not caplog.records
    as_comparisons([{**TWO, "note": 1}], tokenizer)
    assert "not read, as ranked have no such columns: `note`" in caplog.text
    assert "the order of `completions` is taken as best first" in caplog.text


def test_an_sft_trainer_names_the_split_of_a_fault(policy, tokenizer, tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    good, bad = [{"prompt": "a", "completion": "b"}], [{"text": "a"}]
    for rows, name in ({"train_dataset": bad}, "train"), ({"train_dataset": good, "eval_dataset": bad}, "eval"):
        with pytest.raises(UserError, match=f"{name}: 1 fault in 1 row.*\n.*the columns are `text`"):
            SFTTrainer(policy, args, processing_class=tokenizer, **rows)
    trainer = SFTTrainer(policy, args, processing_class=tokenizer, train_dataset=good)
    assert trainer.evaluate(good)["eval_loss"] == trainer.evaluate(Dataset.from_list(good))["eval_loss"]
