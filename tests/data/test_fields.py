"""Fields of turns and columns beside a dialogue: none vanishes without a word."""

import pytest

from rlhf_kit.data.checks import _messages_faults
from rlhf_kit.data.unread import notices, refused_columns

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
