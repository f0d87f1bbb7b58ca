"""A column of whatever JSON can hold comes back as it was: keys, types, sizes."""

import math
import pickle

import datasets

from rlhf_kit.data.columns import Exact, rows_of

VALUES = [1, 2.5, None, True, {"a": 1}, {"b": [1, None]}, 2**70, 0.1234567890123456, "text", [], math.inf]


def held(values):
    rows = [{"answer": value, "number": at} for at, value in enumerate(values)]
    features = datasets.Features({"answer": Exact(), "number": datasets.Value("int64")})
    return datasets.Dataset.from_list(rows, features=features)


def test_values_come_back_as_they_were():
    found = held(VALUES)["answer"]
    assert list(found) == VALUES and [type(value) for value in found] == [type(value) for value in VALUES]


def test_values_survive_what_is_done_to_datasets(tmp_path):
    dataset = held(VALUES)
    assert dataset.select([4, 6])["answer"][:] == [{"a": 1}, 2**70]
    assert dataset.filter(lambda row: row["number"] == 5)[0]["answer"] == {"b": [1, None]}
    assert dataset.map(lambda row: {"twice": 2 * row["number"]})[6]["answer"] == 2**70
    assert pickle.loads(pickle.dumps(dataset))[3]["answer"] is True
    dataset.save_to_disk(tmp_path / "saved")
    assert datasets.load_from_disk(tmp_path / "saved")[4]["answer"] == {"a": 1}


def test_nulls_that_arrow_adds_are_taken_away():
    dataset = datasets.Dataset.from_list([{"turn": {"a": 1}}, {"turn": {"b": 2}}])
    assert rows_of(dataset, ("demonstrations",)) == [{"turn": {"a": 1}}, {"turn": {"b": 2}}]
    assert rows_of(dataset, ("prompts",)) == dataset.to_list()  # of what is handed on, null stays null
