"""The room of a prompt: one arithmetic and one message, wherever prompts, stories or articles are measured."""

import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.models.room import Room


def test_a_context_of_ten_with_four_to_follow_leaves_six():
    room = Room(10, 4, "max_new_tokens")
    assert room.tokens == 6
    assert [room.excess(tokens) for tokens in (0, 6, 7, 9)] == [0, 0, 1, 3]
    assert [room.holds(tokens) for tokens in (0, 6, 7)] == [True, True, False]
    assert room.lacks(9) == "has 9 tokens; the context of 10 less 4 for max_new_tokens leaves 6"


def test_what_follows_may_fill_the_context_by_itself():
    assert Room(4, 4, "it").holds(0) and not Room(4, 4, "it").holds(1)
    assert not Room(4, 5, "it").holds(0) and Room(4, 5, "it").excess(2) == 3
    assert Room(4, 5, "it").lacks(2) == "has 2 tokens; the context of 4 less 5 for it leaves 0"
    assert Room(4, 0, "it").lacks(5) == "has 5 tokens; the context has 4"


def test_a_context_without_an_end_holds_everything():
    room = Room(None, 4, "it")
    assert room.tokens is None and room.holds(10**9) and room.excess(10**9) == 0
    room.check({"row 1": 10**9}, "prompts", "Drop them.")


def test_all_that_are_too_long_are_counted_and_the_longest_named_first():
    room = Room(10, 4, "max_new_tokens")
    room.check({"row 1": 6, "row 2": 1}, "prompts", "Drop them.")
    with pytest.raises(UserError) as refusal:
        room.check({"row 1": 7, "row 2": 6, "row 3": 9}, "prompts", "Drop them.", "train_dataset")
    assert str(refusal.value) == (
        "train_dataset: 2 of 3 prompts are too long. The longest, row 3, has 9 tokens; the context of 10 less 4 for "
        "max_new_tokens leaves 6. Others: row 1 (7 tokens). Drop them."
    )
    with pytest.raises(UserError) as refusal:
        room.check({f"row {at}": 7 for at in range(9)}, "prompts", "Drop them.")
    assert str(refusal.value).startswith("9 of 9 prompts are too long. The longest, row 0, has 7 tokens;")
    assert str(refusal.value).endswith("row 4 (7 tokens), row 5 (7 tokens) and 3 more. Drop them.")
