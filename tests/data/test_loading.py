import csv
import gzip
import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_kit import world
from rlhf_kit.data.files import documents
from rlhf_kit.data.loading import load, split_by_prompt
from rlhf_kit.errors import UserError

REWARD = ("ranked", "pairs", "thumbs")
USER = {"role": "user", "content": "Hi"}
SAYS = {"role": "assistant", "content": "Hello."}
NO = {"role": "assistant", "content": "No."}
ROWS = {
    "ranked": [
        {"prompt": 'Why, "x"?\n', "completions": ["a, b", "巴黎"], "ranks": [2, 1]},
        {"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [1, 1, 2]},
    ],
    "thumbs": [
        {"prompt": "Hi", "completion": "a", "label": True},
        {"prompt": "Hi", "completion": "b", "label": False},
    ],
    "demonstrations": [{"messages": [USER, SAYS]}, {"messages": [USER, SAYS, USER, NO]}],
    "text": [{"text": "One.\n\nTwo."}, {"text": "二"}],
}


def write(path: Path, rows) -> str:
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    elif name.endswith(".json"):
        content = json.dumps({"data": rows} if "wrapped" in name else rows).encode()
    elif name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        content = sink.getvalue().to_pybytes()
    else:
        plain = path.parent / "plain.csv"
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(
                {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items()}
                for row in rows
            )
        content = plain.read_bytes()
        plain.unlink()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def message(source, kinds=REWARD, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        load(str(source), kinds, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "wrapped.json", "x.parquet", "x.csv"])
@pytest.mark.parametrize("kind", ROWS)
def test_every_suffix_gives_the_same_rows(tmp_path, kind, name, packed):
    dataset, found = load(write(tmp_path / (name + packed), ROWS[kind]), (kind,))
    assert (dataset.to_list(), found) == (ROWS[kind], kind)


def test_file_order_is_taken_only_where_no_row_has_an_order_and_said_once(tmp_path, caplog):
    rows = [{"prompt": "Hi", "completions": ["a", "b", "c"]}, {"prompt": "Ho", "completions": ["a", "b"]}]
    path = write(tmp_path / "x.jsonl", rows)
    assert load(path, REWARD)[0]["ranks"] == [[1, 2, 3], [1, 2]]
    told = "no row has `ranks` or `scores`: the order of `completions` is taken as best first"
    assert caplog.messages == [f"{path}: {told}"]
    write(tmp_path / "x.jsonl", [*rows, {"prompt": "He", "completions": ["a", "b"], "ranks": [2, 1]}])
    fault = "has neither `ranks` nor `scores`, which other rows have"
    text = message(path)
    assert f"line 1: {fault}" in text and f"line 3: {fault}" in text and "line 5" not in text


def test_scores_are_read_as_scores(tmp_path, caplog):
    rows = [{"prompt": "Hi", "completions": ["a", "b", "c"], "scores": [0.5, 3, 0.5]}]
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        assert load(write(tmp_path / name, rows), REWARD)[0]["ranks"] == [[2, 1, 2]], name
    rows += [{"prompt": "Hi", "completions": ["a", "b"], "ranks": [2, 1]}]
    assert load(write(tmp_path / "x.jsonl", rows), REWARD)[0]["ranks"] == [[2, 1, 2], [2, 1]]
    assert not caplog.messages


ORDERS = [
    {name: [2, 1]} for name in ("rank", "ranking", "rankings", "Ranks", "ratings", "Rating", "score", "labels")
] + [
    {"answer_scores": [1.5, 7.0]},
    {"rewardModelScore": {"a": 1, "b": 2}},
    {"preferences": ["worse", "better"]},
    {"labels": [False, True]},
    {"best": 1},
    {"x": [0.1, 0.9]},  # a number an answer, whatever it is called
]


@pytest.mark.parametrize("column", ORDERS, ids=[next(iter(column)) for column in ORDERS])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_may_be_the_order_is_never_passed_over(tmp_path, column, suffix):
    name = next(iter(column))
    if (name, suffix) == ("x", ".csv"):
        return  # a cell is text there, and this one's name says nothing
    row = {"prompt": "Hi", "completions": ["bad", "good"], **column}
    path = write(tmp_path / f"x{suffix}", [row, row])
    assert f"`{name}` beside `completions` may be their order, but is not read. Rename it to `ranks`" in message(path)
    assert f"`{name}` beside" in message(path, on_bad_row="drop")


def test_an_order_by_another_name_beside_ranks_is_named_as_unread(tmp_path, caplog):
    row = {"prompt": "Hi", "completions": ["a", "b"], "ranks": [2, 1], "scores": [1, 2], "rank": [1, 2]}
    path = write(tmp_path / "x.jsonl", [row, {**row, "rank": None, "source": "web"}])
    assert load(path, REWARD)[0]["ranks"] == [[2, 1], [2, 1]]
    assert caplog.messages == [
        f"{path}: not read, as ranked have no such columns: `rank` (in 1 of 2 rows), `source` (in 1 of 2 rows)"
    ]


PLAIN = {"prompt": "Translate to French.", "completion": "chat"}
PAIR = {"prompt": "Translate to French.", "chosen": "chat", "rejected": "chien"}


@pytest.mark.parametrize(
    ("row", "kind", "column"),
    [
        ({**PLAIN, "input": "cat"}, "demonstrations", "input"),
        ({**PLAIN, "Context": "A cat."}, "demonstrations", "Context"),
        ({**PLAIN, "documents": [{"title": "Cats"}]}, "demonstrations", "documents"),
        ({**PAIR, "input": "cat"}, "pairs", "input"),
        ({**PAIR, "system_prompt": "You are terse."}, "pairs", "system_prompt"),
        ({**PLAIN, "label": True, "context": "A cat."}, "thumbs", "context"),
        ({"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2], "input": "cat"}, "ranked", "input"),
    ],
)
def test_what_is_part_of_the_prompt_is_not_lost(tmp_path, caplog, row, kind, column):
    path = write(tmp_path / "x.jsonl", [row])
    assert f"`{column}` is not read, and rows have one that is not part of their `prompt`" in message(path, (kind,))
    there = {**row, column: "French"} | {"prompt": "French?"}
    assert load(write(tmp_path / "x.jsonl", [there]), (kind,))[1] == kind  # it stands in the prompt: named only
    assert caplog.messages == [f"{path}: not read, as {kind} have no such columns: `{column}`"]


def test_labels_and_weights_that_demonstrations_cannot_honour_are_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", [{**PLAIN, "label": False, "weight": 0.5}])
    text = message(path, ("demonstrations",))
    assert "`label` tells good answers from bad" in text and "`weight` counts in rankings and pairs only" in text


def test_scores_beside_a_pair_and_a_second_form_are_named_as_unread(tmp_path, caplog):
    row = {**PAIR, "score_chosen": 8.5, "score_rejected": 8.5, "messages": [USER, SAYS]}
    path = write(tmp_path / "x.jsonl", [row])
    load(path, REWARD)
    load(path, ("demonstrations",))
    assert caplog.messages == [
        f"{path}: not read, as pairs have no such columns: `score_chosen`, `score_rejected`, `messages`",
        f"{path}: not read, as demonstrations have no such columns: `prompt`, `chosen`, `rejected`, `score_chosen`, "
        "`score_rejected`",
    ]


def test_a_pair_is_a_ranking_of_two(tmp_path):
    rows = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"prompt": "Hi", "chosen": "c", "rejected": "d", "margin": 2},
    ]
    dataset, kind = load(write(tmp_path / "x.jsonl", rows), REWARD)
    assert kind == "pairs"
    assert dataset.to_list() == [
        {"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2], "margin": None},
        {"prompt": "Hi", "completions": ["c", "d"], "ranks": [1, 2], "margin": 2.0},
    ]


def test_weight_labeler_and_margin_are_kept_where_the_source_has_them(tmp_path):
    ranked = {"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2]}
    path = write(tmp_path / "x.jsonl", [{**ranked, "weight": 2, "labeler": 7}, {**ranked, "margin": None}])
    dataset, _ = load(path, REWARD)
    assert dataset.to_list() == [
        {**ranked, "ranks": [1, 2], "weight": 2.0, "labeler": "7"},
        {**ranked, "ranks": [1, 2], "weight": None, "labeler": None},
    ]
    assert dataset.features["weight"].dtype == "float64"
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    row = load(write(tmp_path / "x.csv", [{**pair, "weight": 0.5, "labeler": "Ann"}]), REWARD)[0][0]
    assert row == {**ranked, "ranks": [1, 2], "margin": None, "weight": 0.5, "labeler": "Ann"}


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_spans_of_a_text_are_kept_where_the_source_has_them(tmp_path, name):
    rows = [{"text": "Nora came.", "spans": [[0, 4]]}, {"text": "Who?"}]
    dataset, _ = load(write(tmp_path / name, rows), ("text",))
    assert dataset.to_list() == [rows[0], {"text": "Who?", "spans": None}]


def test_pairs_of_one_group_are_one_ranking(tmp_path):
    lone = {"prompt": "Ho", "chosen": "x", "rejected": "y"}
    rows = [
        {"prompt": "Hi", "chosen": "b", "rejected": "c", "group": "g", "weight": 0.25},
        lone,
        {"prompt": "Hi", "chosen": "a", "rejected": "c", "group": "g", "weight": 0.25},
    ]
    assert load(write(tmp_path / "x.jsonl", rows), REWARD)[0].to_list() == [
        {"prompt": "Hi", "completions": ["b", "a", "c"], "ranks": [1, 1, 2], "margin": None, "weight": 0.5},
        {"prompt": "Ho", "completions": ["x", "y"], "ranks": [1, 2], "margin": None, "weight": None},
    ]


def test_pairs_given_as_dialogues(tmp_path):
    explicit = {"prompt": "Hi", "chosen": [USER, SAYS], "rejected": [USER, NO]}
    implicit = {"chosen": [USER, SAYS], "rejected": [USER, NO]}
    for rows in ([explicit], [implicit]):
        row = load(write(tmp_path / "x.jsonl", rows), REWARD)[0][0]
        assert row["completions"] == ["Hello.", "No."]
        assert row["prompt"] in ("Hi", [USER])


def test_prompts_of_two_types_become_messages(tmp_path):
    rows = [{"prompt": "Hi", "completions": ["a", "b"]}, {"prompt": [USER], "completions": [[SAYS], [NO]]}]
    dataset, _ = load(write(tmp_path / "x.jsonl", rows), REWARD)
    assert dataset["prompt"] == [[USER], [USER]]
    assert dataset["completions"][1] == ["Hello.", "No."]


def test_demonstrations_of_two_forms_become_messages(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": "Hi", "completion": "Hello."}])
    assert load(path, ("demonstrations",))[0].to_list() == [{"prompt": "Hi", "completion": "Hello."}]
    write(tmp_path / "x.jsonl", [{"prompt": "Hi", "completion": "Hello."}, {"messages": [USER, NO]}])
    assert load(path, ("demonstrations",))[0]["messages"] == [[USER, SAYS], [USER, NO]]


def test_prompts_keep_their_further_columns(tmp_path):
    rows = [{"prompt": "Hi", "answer": 4}, {"prompt": "Ho", "answer": None, "note": "x"}]
    dataset, kind = load(write(tmp_path / "x.jsonl", rows), ("prompts",))
    assert (kind, dataset["answer"], dataset["note"]) == ("prompts", [4, None], [None, "x"])


def test_what_no_column_can_hold_is_told(tmp_path):
    rows = [{"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2**70]}]
    assert "a column holds values that cannot be stored: " in message(write(tmp_path / "x.jsonl", rows))


def test_bad_lines_and_bad_rows_are_told_together_with_their_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps({"prompt": "Hi", "completions": ["a", "b"]})
    path.write_text(f'{good}\n\n{{"prompt": \n[1]\n{{"prompt": "Hi", "completions": ["a"]}}\n')
    assert message(path).splitlines() == [
        f"{path}: 3 faults in 4 rows; nothing was loaded. Fix these rows, or give other data.",
        "  line 3: is not valid JSON: Expecting value (column 12); give one object per line",
        "  line 4: is a list; a row is an object with `prompt` + `completions`",
        "  line 5: `completions` has one answer only; give at least 2, there is nothing to compare",
    ]


GOOD = {"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2]}
BAD = [
    ({**GOOD, "completions": ["a"]}, "one answer only"),
    ({**GOOD, "completions": ["a", "a"]}, "equal texts with different ranks"),
    ({**GOOD, "ranks": [1, 2, 3]}, "`ranks` of the wrong length"),
    ({**GOOD, "completions": ["a", " "]}, "empty text"),
    ({**GOOD, "completions": "a"}, "wrong type"),
    ({**GOOD, "prompt": [USER, SAYS]}, "a wrong turn"),
    ({"prompt": "Hi"}, "wrong columns"),
    ([1], "wrong type"),
]


@pytest.mark.parametrize(("row", "fault"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_dropped_and_named(tmp_path, caplog, row, fault):
    path = write(tmp_path / "x.jsonl", [GOOD, row, GOOD])  # lines 1, 3, 5
    message(path)  # refused by default
    with caplog.at_level(logging.WARNING):
        dataset, _ = load(path, ("ranked",), on_bad_row="drop")
    assert dataset.to_list() == [GOOD] * 2
    assert caplog.messages == [f"{path}: 1 of 3 rows dropped: 1 {fault} (line 3)"]


def test_dropped_rows_are_counted_by_kind_in_one_warning(tmp_path, caplog):
    one, two = BAD[0][0], BAD[2][0]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([one, GOOD, two, one, one, one]))
    with caplog.at_level(logging.WARNING):
        load(str(path), REWARD, on_bad_row="drop")
    assert caplog.messages == [
        f"{path}: 5 of 6 rows dropped: 4 one answer only (rows 1, 4, 5, ...); 1 `ranks` of the wrong length (row 3)"
    ]


def test_drop_is_silent_where_nothing_is_wrong_and_strict_where_nothing_is_left(tmp_path, caplog):
    load(write(tmp_path / "x.jsonl", [GOOD]), REWARD, on_bad_row="drop")
    assert not caplog.messages
    path = write(tmp_path / "x.jsonl", [BAD[0][0], BAD[3][0]])
    assert message(path, on_bad_row="drop") == (
        f"{path}: nothing is left, 2 of 2 rows are faulty: 1 one answer only (line 1); 1 empty text (line 3)."
    )


def test_faults_of_the_file_are_not_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n{{"prompt": \n')
    assert "line 2: is not valid JSON" in message(path, on_bad_row="drop")
    path.write_text('{"query": "Hi"}\n')
    assert "the columns are `query`" in message(path, on_bad_row="drop")
    assert message(path, on_bad_row="dorp") == "on_bad_row is 'dorp'; give 'error' or 'drop'. Did you mean 'drop'?"


def test_a_group_of_pairs_goes_whole(tmp_path, caplog):
    def pair(chosen, rejected, group):
        return {"prompt": "Hi", "chosen": chosen, "rejected": rejected, "group": group}

    rows = [pair("a", "b", 1), pair("b", " ", 1), pair("a", "b", 2), pair("b", "a", 2), pair("a", "b", 3)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows))
    with caplog.at_level(logging.WARNING):
        dataset, _ = load(str(path), REWARD, on_bad_row="drop")
    assert dataset["completions"] == [["a", "b"]]
    assert caplog.messages == [
        f"{path}: 4 of 5 rows dropped: 1 in a group with a faulty pair (row 1); 1 empty text (row 2); "
        "2 pairs of a group that contradict one another (rows 3, 4)"
    ]


def test_wrong_columns_name_the_nearest(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"instruction": "Hi", "completion": ["a", "b"], "rank": [1, 2]}])
    assert message(path) == (
        f"{path}: 1 fault in 1 row; nothing was loaded. Fix these rows, or give other data.\n"
        "  the columns are `instruction`, `completion`, `rank`; needed: "
        "`prompt` + `completions` (ranked); `prompt` + `chosen` + `rejected`, or `chosen` + `rejected` (pairs); "
        "`prompt` + `completion` + `label` (thumbs). "
        "Rename `instruction` to `prompt` and `completion` to `completions`."
    )


def test_bad_cells_of_a_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,completions,ranks\nHi,"[""a"", ""b""]","[1, 2]"\nHi,a,1\nHi,"[""a"", ""b""]",[1],x\n')
    text = message(path)
    assert "row 2: `completions` is not valid JSON: Expecting value ('a')" in text
    assert "row 3: has more cells than the 3 columns; quote the commas" in text


def test_broken_files_are_told_without_a_traceback(tmp_path):
    cases = {
        "a.json": (b'{"a": 1}\n{"a": 2}', "is not valid JSON: Extra data (line 2, column 1)"),
        "b.json": (b'{"a": 1}', "holds no list of rows"),
        "c.parquet": (b"not parquet at all", "is not a Parquet file"),
        "d.jsonl": (b"\xff\xfe", "is not UTF-8 text"),
        "e.jsonl.gz": (b"plain", "cannot be read"),
        "f.jsonl": (b"\n", "holds no rows"),
        "g.xlsx": (b"", "files of the type .xlsx cannot be read. Supported: .json, .jsonl"),
        "h.txt": (b"a", "is plain text, but this stage takes 'ranked', 'pairs', 'thumbs'"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert expected in message(tmp_path / name), name


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").touch()
    assert (
        message(tmp_path / "trian.jsonl")
        == f"{tmp_path}/trian.jsonl does not exist. Did you mean 'train.jsonl'? Give an existing path."
    )
    assert "is not there either" in message(tmp_path / "none" / "x.jsonl")
    assert message("no-such-file.jsonl").startswith("no-such-file.jsonl does not exist.")


def test_a_folder_gives_its_split(tmp_path):
    train, test = ROWS["ranked"]
    write(tmp_path / "train.jsonl", [train])
    write(tmp_path / "test.csv.gz", [test])
    assert load(str(tmp_path), REWARD)[0].to_list() == [train]
    assert load(str(tmp_path), REWARD, split="test")[0].to_list() == [test]
    assert (
        message(tmp_path, split="tets")
        == f"{tmp_path} has no split 'tets'; it has 'test', 'train'. Did you mean 'test'?"
    )
    write(tmp_path / "train.json", [train])
    assert "more than one file for the split 'train': train.json, train.jsonl" in message(tmp_path)


def test_a_folder_of_shards_is_read_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    for at, row in enumerate(ROWS["ranked"]):
        write(tmp_path / "data" / f"train-0000{at}-of-00002.parquet", [row])
    assert load(str(tmp_path), REWARD)[0].to_list() == ROWS["ranked"]


def test_a_folder_without_data_says_what_is_in_it(tmp_path):
    assert "it holds: nothing." in message(tmp_path)
    (tmp_path / "notes.md").touch()
    assert "has no file for the split 'train', such as train.jsonl; it holds: notes.md." in message(tmp_path)


def test_folders_saved_by_datasets(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS["ranked"])
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "dict")
    for name in ("one", "dict"):
        assert load(str(tmp_path / name), REWARD)[0].to_list() == ROWS["ranked"]
    assert "has no split 'test'; it has 'train'." in message(tmp_path / "dict", split="test")


def test_plain_text_splits_at_wikitext_titles_only(tmp_path):
    text = " = One = \n\n body \n\n = = Part = = \n\n more \n\n = Two = \n end\n"
    assert documents(text) == [" = One = \n\n body \n\n = = Part = = \n\n more \n\n", " = Two = \n end\n"]
    assert documents("a\n\nb = c\n\nd") == ["a\n\nb = c\n\nd"]
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("plain\n\ntext")
    assert len(load(str(tmp_path / "a.txt"), ("text",))[0]) == 2
    assert load(str(tmp_path), ("text",))[0]["text"] == [*documents(text), "plain\n\ntext"]


def test_a_hub_id_out_of_reach_is_one_sentence_of_advice():
    text = message("nobody/nothing-here")
    assert "'nobody/nothing-here' is not a local file or folder" in text
    assert "Check the id and the connection, or give a local file." in text
    assert message("wrld").endswith("Did you mean 'world'?")


def test_split_by_prompt_never_parts_a_prompt():
    rows = [{"prompt": f"p{at % 10}", "completions": ["a", "b"], "ranks": [1, 2]} for at in range(40)]
    dataset = datasets.Dataset.from_list(rows)
    train, test = split_by_prompt(dataset, 0.3, seed=1)
    assert (len(train), len(test)) == (28, 12)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert split_by_prompt(dataset, 3, seed=1)[1].to_list() == test.to_list()
    assert split_by_prompt(dataset, 3, seed=2)[1].to_list() != test.to_list()


def test_split_by_prompt_sees_the_prompt_of_a_dialogue():
    rows = [
        {"messages": [{"role": "user", "content": f"p{at % 4}"}, {**SAYS, "content": f"a{at}"}]} for at in range(8)
    ]
    train, test = split_by_prompt(datasets.Dataset.from_list(rows), 0.5, seed=0)
    sides = [{row["messages"][0]["content"] for row in side} for side in (train, test)]
    assert [len(side) for side in sides] == [2, 2] and not sides[0] & sides[1]


@pytest.mark.parametrize("size", [0, 1.0, 5])
def test_split_by_prompt_leaves_something_on_either_side(size):
    dataset = datasets.Dataset.from_list([{"prompt": "same"}])
    with pytest.raises(UserError, match="cannot be taken from 1 different prompt"):
        split_by_prompt(dataset, size, seed=0)


KINDS_OF_THE_WORLD = ("text", "demonstrations", "ranked", "pairs", "thumbs", "prompts")


@pytest.mark.skipif(not hasattr(world, "rows"), reason="the embedded world is not built yet")
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", KINDS_OF_THE_WORLD)
def test_the_world_is_a_source_of_every_kind(kind, split):
    dataset, found = load("world", (kind,), split=split, seed=3)
    assert found == kind and len(dataset) > 0
    assert load(f"world:{kind}", ("text", kind), split=split, seed=3)[0].to_list() == dataset.to_list()


def test_the_world_has_no_other_kinds_and_splits():
    assert message("world:pair").endswith("which takes 'ranked', 'pairs', 'thumbs'. Did you mean 'pairs'?")
    assert message("world", split="tst").endswith("it has 'train' and 'test'. Did you mean 'test'?")


@pytest.mark.parametrize(
    ("source", "kinds", "kind", "count"),
    [
        ("demonstrations/instructions.jsonl", ("demonstrations",), "demonstrations", 586),
        ("ranked-instructions", REWARD, "ranked", 476),
        ("ranked-instructions/test.jsonl", ("prompts",), "prompts", 110),
        ("text/wikitext2_valid.txt", ("text",), "text", 60),
    ],
)
def test_real_data_loads(real_data, source, kinds, kind, count):
    dataset, found = load(str(real_data / source), kinds)
    assert (found, len(dataset)) == (kind, count)
