"""Fields of turns and columns beside a dialogue: none vanishes without a word."""

import json

import pytest

from rlhf_kit.data.checks import _messages_faults
from rlhf_kit.data.loading import load
from rlhf_kit.data.unread import notices, refused_columns
from rlhf_kit.errors import UserError

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("field, value", [("weight", 0), ("weight", 0.5), ("tool_calls", [{"id": 1}]), ("tools", [1])])
def test_a_field_that_changes_the_turn_is_refused(field, value):
    (fault,) = _messages_faults("`messages`", [TURNS[0], {**TURNS[1], field: value}])
    assert f"turn 2: `{field}`" in fault
    assert not list(_messages_faults("`messages`", [TURNS[0], {**TURNS[1], field: None}]))


@pytest.mark.parametrize("field", ["name", "reasoning_content", "thinking"])
def test_a_field_that_nothing_reads_is_named(field):
    (told,) = notices([{"messages": [TURNS[0], {**TURNS[1], field: "x"}]}, {"messages": TURNS}], "demonstrations")
    assert f"`{field}` (in 1 of 2 rows)" in told


@pytest.mark.parametrize(
    "column, value", [("system", "Be kind."), ("history", [["a", "b"]]), ("tools", [{"name": "f"}])]
)
def test_a_column_beside_the_dialogue_is_refused(column, value):
    assert f"`{column}`" in refused_columns([{"messages": TURNS, column: value}], "demonstrations")[0]


@pytest.mark.parametrize("field", ["train", "training", "loss"])
def test_a_turn_that_is_not_to_be_learnt_is_refused_by_any_name(tmp_path, field):
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no", field: False}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(UserError, match=f"turn 2: `{field}` False is not supported"):
        load(str(path), ["demonstrations"])


def test_fields_of_answers_are_named_too(tmp_path):
    question = [{"role": "user", "content": "?"}]
    answers = [[{"role": "assistant", "content": text, "reasoning_content": "hm"}] for text in ("yes", "no")]
    path, told = tmp_path / "rows.jsonl", []
    for row, kind in (
        ({"prompt": question, "completion": answers[0]}, "demonstrations"),
        ({"prompt": question, "completions": answers, "ranks": [1, 2]}, "ranked"),
    ):
        path.write_text(json.dumps(row) + "\n")
        told.clear()
        load(str(path), [kind], tell=told.append)
        assert any("reasoning_content" in notice for notice in told), kind
