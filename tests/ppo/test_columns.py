"""Every further column of a prompt reaches the reward functions under its own name, as it stood (issue: train-10)."""

import datetime
import decimal
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset

from rlhf_kit.data.loading import checked, load, split_by_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.ppo.best_of_n import best_of_n
from rlhf_kit.stages import ppo
from tests.tiny_stages import run_command

ASKED = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "4."}
AGAIN = {"role": "user", "content": "2 + 3?"}
FIVE = {"role": "assistant", "content": "5."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row,prompt",
    [
        ({"prompt": "2 + 2?", "completion": "It is 4."}, "2 + 2?"),
        ({"prompt": "2 + 2?", "completion": [SAID], "label": True}, "2 + 2?"),
        ({"prompt": [ASKED], "chosen": "4.", "rejected": "5.", "margin": 2}, [ASKED]),
        ({"prompt": "2 + 2?", "messages": [AGAIN, FIVE]}, "2 + 2?"),
        ({"messages": [ASKED, SAID]}, [ASKED]),
        ({"messages": [ASKED, SAID, AGAIN, FIVE]}, [ASKED, SAID, AGAIN]),
        ({"messages": [ASKED, SAID, AGAIN]}, [ASKED, SAID, AGAIN]),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, FIVE], "group": 3}, [ASKED]),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}], "id": 7}, [ASKED]),
        ({"instruction": "2 + 2?", "input": "", "output": "4."}, "2 + 2?"),
        ({"prompt": "2 + 2?", "text": "a story", "ranks": [1, 2], "scores": [3, 4.5]}, "2 + 2?"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_whatever_a_row_looks_like_all_its_columns_are_handed_on(row, prompt, tmp_path):
    row |= {"solution": "4", "meta": {"level": 1}}
    found, kind = load(write(tmp_path / "x.jsonl", [row]), ppo.KINDS)
    assert kind == "prompts" and found[0] == {"prompt": prompt} | {key: row[key] for key in row if key != "prompt"}


def test_answers_of_a_ranking_are_left_out_and_that_is_said(tmp_path):
    rows = [{"prompt": "2 + 2?", "completions": ["4.", "5."], "ranks": [1, 2], "solution": 4}, {"prompt": "2 + 3?"}]
    told = []
    found, _ = load(write(tmp_path / "x.jsonl", rows), ppo.KINDS, tell=told.append)
    assert set(found.column_names) == {"prompt", "ranks", "solution"}
    assert (
        len(told) == 1
        and "the sampled ones have this name; rename it to pass it on: `completions` (in 1 of 2 rows)" in told[0]
    )


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids", "prompt_ids", "trainer_state"])
def test_reserved_names_are_refused_by_name(name, tmp_path, make_trainer):
    rows = [{"prompt": "2 + 2?", "solution": "4", name: "x"}]
    told = f"`{name}` is what a reward function gets from the trainer; rename the column"
    with pytest.raises(UserError, match=told):
        load(write(tmp_path / "x.jsonl", rows), ppo.KINDS)
    for dataset in (rows, Dataset.from_list(rows)):
        with pytest.raises(UserError, match=told):
            make_trainer(train_dataset=dataset)
    with pytest.raises(UserError, match=told):
        make_trainer(eval_dataset=Dataset.from_list(rows))


def calls(arguments):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


RESULT = {"role": "tool", "content": "4", "name": "f"}
TOOLS = [[{"function": {"name": "f", "parameters": {name: {"type": "number"}}}}] for name in "ab"]


@pytest.mark.parametrize("source", ["jsonl", "json", "parquet", "saved", "python"])
def test_turns_of_a_table_reach_template_and_function_with_their_own_keys(source, tmp_path):
    talks = [[ASKED, calls({name: at}), RESULT, SAID, AGAIN, FIVE] for at, name in enumerate("ab")]
    share = [[{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "mark": 1}], [{"from": "gpt"}]]
    rows = [
        {"messages": talk, "tools": tools, "shown": told}
        for talk, tools, told in zip(talks, TOOLS, share, strict=True)
    ]
    rows = [{**row, "answer": {"role": 1, "from": None}, "log": {"past": [row["messages"]]}} for row in rows]
    file = str(tmp_path / f"rows.{source}")
    if source == "jsonl":
        write(tmp_path / "rows.jsonl", rows)
    elif source == "json":
        (tmp_path / "rows.json").write_text(json.dumps(rows))
    elif source == "parquet":
        Dataset.from_list(rows).to_parquet(file)
    elif source == "saved":
        Dataset.from_list(rows).save_to_disk(file)
    dataset = Dataset.from_list(rows) if source == "python" else load(file, ppo.KINDS)[0]
    found, *_ = checked(dataset, ppo.KINDS, "rows")
    assert found == [{"prompt": row["messages"][:-1], **row} for row in rows]


VALUES = {
    "an integer beside a number": [1, 2.0, 3],
    "objects of other keys": [{"a": 1}, {"b": None, "a": 2}, {}],
    "null in objects": [{"a": 1, "b": None}, {"a": None, "b": 2}],
    "objects in lists": [[{"a": 1}, {"b": 2}], [], None],
    "over 64 bits": [2**64, -(2**70), 1],
    "just 64 bits": [2**63 - 1, -(2**63), None],
    "mixed types": [1, "1", [1, "1", None]],
    "truth beside numbers": [True, 1, 0.0],
    "text that is JSON": ["4", 4, "[1]"],
    "no number": [float("nan"), float("inf"), -0.0],
    "no number beside integers": [float("nan"), 1, None],
    "small and long": [5e-324, 0.1234567890123456789, 1e300],
    "texts": ["中文 😀", "", None],
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_values_stay_exactly_what_they_were(values, tmp_path):
    rows = [{"prompt": f"say {at}", "answer": value} for at, value in enumerate(values)]
    found, _ = load(write(tmp_path / "x.jsonl", rows), ppo.KINDS)
    assert repr(found["answer"][:]) == repr(values)
    found.save_to_disk(tmp_path / "saved")
    again, _ = load(str(tmp_path / "saved"), ppo.KINDS)
    assert repr(again["answer"][:]) == repr(values)


def test_values_survive_what_is_done_to_prompts(tmp_path):
    values = [1, 2.5, {"a": None}, 2**80]
    rows = [{"prompt": f"say {at}", "answer": value} for at, value in enumerate(values)]
    found, _ = load(write(tmp_path / "x.jsonl", rows), ppo.KINDS)
    assert found.select([3, 2])["answer"][:] == [2**80, {"a": None}]
    assert found.shard(2, 1, contiguous=False)["answer"][:] == [2.5, 2**80]
    assert found.filter(lambda row: row["prompt"] != "say 0")["answer"][:] == values[1:]
    assert found.map(lambda row: {"length": len(row["prompt"])})["answer"][:] == values
    train, test = split_by_prompt(found, 1, seed=0)
    kept = {row["prompt"]: row["answer"] for row in [*train, *test]}
    assert [kept[f"say {at}"] for at in range(4)] == values and type(kept["say 0"]) is int


def test_what_json_has_not_stays_or_is_refused_by_name(tmp_path):
    utc = pyarrow.array([datetime.datetime(2020, 1, 2, 3), None], pyarrow.timestamp("us", "UTC"))
    columns = {
        "picture": [b"\x00\xff", None],
        "price": [decimal.Decimal("1.50"), decimal.Decimal("2.00")],
        "day": [datetime.date(2020, 1, 2), None],
        "when": utc,
        "span": [datetime.timedelta(seconds=1), None],
        "half": pyarrow.array([1.5, None], pyarrow.float32()),
        "meta": [{"a": None, "b": [{"c": None}]}, None],
    }
    table = pyarrow.table({"prompt": ["a", "b"], **columns})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    found, _ = load(str(tmp_path / "x.parquet"), ppo.KINDS)
    assert {name: found[name][:] for name in columns} == {name: table[name].to_pylist() for name in columns}
    pairs = pyarrow.array([[("a", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(table.append_column("pairs", pairs), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x.parquet: no column holds the values of `pairs` \(NoneType, list\)"):
        load(str(tmp_path / "x.parquet"), ppo.KINDS)


def looking(seen):
    def look(completions, answer, **_):
        seen.append(answer)
        return [float(len(str(text))) for text in completions]

    return look


@pytest.mark.parametrize("kind", ["of any type", "of one type", "of a table"])
def test_rollouts_evaluations_and_best_of_n_hand_on_the_same(kind, make_trainer, policy, tokenizer, tmp_path):
    values = [1, 2.5, {"a": None}, 2**80, {"b": [1]}, None, "4", True]
    if kind != "of any type":
        values = [{"a": at, "b": None} for at in range(8)]
    rows = [
        {"messages": [{**ASKED, "content": f"say {at}"}, SAID], "answer": value} for at, value in enumerate(values)
    ]
    if kind == "of a table":
        Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    else:
        write(tmp_path / "x.jsonl", rows)
    dataset, _ = load(str(next(tmp_path.glob("x.*"))), ppo.KINDS)
    for given in (dataset, rows):
        seen = []
        trainer = make_trainer(reward_funcs=looking(seen), train_dataset=given, eval_dataset=given)
        trainer.collect(trainer.prompts, torch.Generator().manual_seed(0))
        trainer.evaluate()
        trainer.evaluate(given)
        assert len(seen) == 5 and all(repr(answers) == repr(values) for answers in seen)  # of the reference too
    seen = []
    columns = {"answer": dataset["answer"][:]}
    best_of_n(policy, tokenizer, dataset["prompt"][:], looking(seen), 2, max_completion_length=4, columns=columns)
    assert repr(seen) == repr([[value for value in values for _ in range(2)]])


@pytest.mark.parametrize("name", ["prompt", "prompts", "completions", "completion_ids", "prompt_ids", "trainer_state"])
def test_best_of_n_refuses_reserved_names(policy, tokenizer, name):
    with pytest.raises(UserError, match=f"the column '{name}' has the name of what a reward function gets anyway"):
        best_of_n(policy, tokenizer, ["a"], looking([]), 2, max_completion_length=4, columns={name: ["x"]})


FUNCTIONS = """
SEEN = []
def exact(completions, solution, **k):
    SEEN.append((solution, sorted(k)))
    return [float(s in str(c)) for c, s in zip(completions, solution)]
"""


@pytest.fixture
def command(policy, tokenizer_folder, tmp_path, monkeypatch):
    (tmp_path / "functions_of_columns.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    policy.save_pretrained(tmp_path / "base")
    for item in tokenizer_folder.iterdir():
        (tmp_path / "base" / item.name).write_bytes(item.read_bytes())
    argv = ["--model_name_or_path", str(tmp_path / "base"), "--reward_funcs", "functions_of_columns:exact"]
    argv += ["--total_episodes", "4", "--rollout_batch_size", "4", "--mini_batch_size", "4", "--use_cpu", "true"]
    argv += ["--max_completion_length", "4", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    return lambda rows, *more: [*argv, "--dataset_name", write(tmp_path / "rows.jsonl", rows), *more]


def test_the_command_hands_on_the_solution_beside_an_answer(command):
    rows = [{"prompt": "2+2?", "completion": "It is 4.", "solution": "4"}] * 4
    assert run_command(ppo, command(rows)) == 0
    solutions, others = sys.modules["functions_of_columns"].SEEN[0]
    assert solutions == ["4"] * 4
    assert others == ["completion", "completion_ids", "prompts", "trainer_state"]


@pytest.mark.parametrize("begun", [["--dry_run"], []], ids=["dry run", "before the model is loaded"])
def test_a_column_that_a_function_lacks_is_told(begun, command, capsys, tmp_path):
    (tmp_path / "base" / "model.safetensors").unlink()
    assert run_command(ppo, command([{"prompt": "2+2?", "answer": "4"}] * 4, *begun)) == 2
    assert "missing a required argument: 'solution'" in capsys.readouterr().err
