import numpy as np
import pytest

from rlhf_kit.data.formats import KINDS, Context, detect_kind, validate
from rlhf_kit.data.messages import ROLES
from rlhf_kit.errors import UserError

USER = {"role": "user", "content": "Hi"}
SAYS = {"role": "assistant", "content": "Hello."}
RANKED = {"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}
PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
THUMB = {"prompt": "Hi", "completion": "a", "label": True}
GOOD = {
    "text": [{"text": "a"}],
    "demonstrations": [
        {"messages": [{"role": "system", "content": "s"}, USER, SAYS, USER, SAYS]},
        {"prompt": "Hi", "completion": "Hello."},
        {"prompt": [USER], "completion": [SAYS]},
    ],
    "ranked": [
        RANKED,
        {"prompt": [USER], "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "Hi", "completions": ["a", "b"], "scores": [-0.5, 3]},
        {**RANKED, "ranks": [np.int64(3), np.int64(1), np.int64(2)]},
        {**RANKED, "completions": ["a", "b", "b "]},
        {**RANKED, "ranks": [2, 2, 2]},  # whether a list without an order teaches depends on the loss
        {**RANKED, "margin": 1, "weight": 0.5, "labeler": "Ann"},
        {**RANKED, "labeler": 3, "weight": None},
    ],
    "pairs": [
        PAIR,
        {**PAIR, "margin": 0.5},
        {**PAIR, "margin": None},
        {**PAIR, "group": 7, "weight": 0.25, "labeler": "Ann"},
        {"prompt": "Hi", "chosen": [USER, SAYS], "rejected": [USER, {**SAYS, "content": "No."}]},
        {"chosen": [USER, SAYS], "rejected": [USER, {**SAYS, "content": "No."}]},
    ],
    "thumbs": [THUMB],
    "prompts": [{"prompt": "Hi", "answer": 4}, {"prompt": [USER, SAYS, USER]}],
}

FAULTS = [
    ("text", {"text": " \n"}, "`text` is empty; give some text or remove the row"),
    (
        "text",
        {"text": "abc", "spans": [[1, 4]]},
        "`spans`, 1: [1, 4] lies outside a text of 3 characters; count characters from 0, the end not included",
    ),
    (
        "text",
        {"text": "abc", "spans": [[0, 1], [2, 2]]},
        "`spans`, 2: [2, 2] lies outside a text of 3 characters; count characters from 0, the end not included",
    ),
    ("text", {"text": "abc", "spans": [1]}, "`spans`, 1 is the number 1; give [start, end], whole numbers"),
    ("text", {"text": "abc", "spans": [[0.0, 1.0]]}, "`spans`, 1 is a list; give [start, end], whole numbers"),
    ("text", {"text": "abc", "spans": "b"}, "`spans` is the text 'b'; give a list of [start, end]"),
    ("text", {"text": 5}, "`text` is the number 5; give a string"),
    ("text", ["a"], "is a list; a row is an object with `text`"),
    ("text", {"txt": "a"}, "the columns are `txt`; needed: `text` (text). Rename `txt` to `text`."),
    (
        "ranked",
        {"prompt": "a", "completion": ["a"]},
        "the columns are `prompt`, `completion`; needed: `prompt` + `completions` (ranked). "
        "Rename `completion` to `completions`.",
    ),
    (
        "demonstrations",
        {"instruction": "a", "response": "b"},
        "the columns are `instruction`, `response`; needed: `messages`, or `prompt` + `completion` (demonstrations). "
        "Rename `instruction` to `prompt` and `response` to `completion`.",
    ),
    ("prompts", {"prompt": 3.5}, "`prompt` is the number 3.5; give a string or a list of messages"),
    ("prompts", {"prompt": " "}, "`prompt` is empty; give some text or remove the row"),
    ("prompts", {"prompt": []}, '`prompt` is an empty list; give at least one {"role", "content"}'),
    (
        "prompts",
        {"prompt": [USER, SAYS]},
        "`prompt` ends with a turn of the assistant; a prompt ends with a user turn",
    ),
    ("demonstrations", {"messages": "Hi"}, '`messages` is the text \'Hi\'; give a list of {"role", "content"}'),
    ("demonstrations", {"messages": []}, '`messages` is an empty list; give at least one {"role", "content"}'),
    (
        "demonstrations",
        {"messages": [{"from": "human", "value": "Hi"}, SAYS]},
        "`messages`, turn 1: found `from`, `value`; a turn has `role` and `content`",
    ),
    (
        "demonstrations",
        {"messages": [{"role": "human", "content": "Hi"}, SAYS]},
        f"`messages`, turn 1: unknown role 'human'; give one of {', '.join(ROLES)}. Did you mean 'user'?",
    ),
    (
        "demonstrations",
        {"messages": [USER, {"role": "asistant", "content": "Hi"}]},
        f"`messages`, turn 2: unknown role 'asistant'; give one of {', '.join(ROLES)}. Did you mean 'assistant'?",
    ),
    (
        "demonstrations",
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        "`messages`, turn 2: `content` is empty; give some text or remove the row",
    ),
    (
        "demonstrations",
        {"messages": [USER]},
        "`messages` has no assistant turn; a demonstration shows what the assistant says",
    ),
    (
        "demonstrations",
        {"messages": [USER, SAYS, USER]},
        "`messages` ends with a turn of the user; the last turn is the assistant's",
    ),
    (
        "demonstrations",
        {"messages": [SAYS, USER, SAYS]},
        "`messages` begins with a turn of the assistant; the first turn (after any system turn) is the user's",
    ),
    ("demonstrations", {"prompt": "Hi", "completion": " "}, "`completion` is empty; give some text or remove the row"),
    ("demonstrations", {"prompt": "Hi", "completion": 1}, "`completion` is the number 1; give a string"),
    (
        "demonstrations",
        {"prompt": "Hi", "completion": [USER]},
        "`completion` ends with a turn of the user; a completion is the assistant's",
    ),
    (
        "ranked",
        {**RANKED, "completions": "a"},
        "`completions` is the text 'a'; give a list of at least 2 answers",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a"]},
        "`completions` has one answer only; give at least 2, there is nothing to compare",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": []},
        "`completions` has no answer; give at least 2, there is nothing to compare",
    ),
    (
        "ranked",
        {**RANKED, "completions": ["a", " ", "c"]},
        "`completions`, answer 2 is empty; give some text or remove the row",
    ),
    (
        "ranked",
        {**RANKED, "completions": ["a", "b", "c", "d"]},
        "`ranks` has 3 entries for 4 `completions`; give one rank per completion (1 = best, equal = tie)",
    ),
    (
        "ranked",
        {**RANKED, "ranks": "1,2,3"},
        "`ranks` is the text '1,2,3'; give a list with one rank per completion (1 = best, equal = tie)",
    ),
    (
        "ranked",
        {**RANKED, "ranks": [0, 1, 2]},
        "`ranks` holds the number 0; ranks are whole numbers from 1 (1 = best, equal = tie)",
    ),
    (
        "ranked",
        {**RANKED, "ranks": [1.5, 1, 2]},
        "`ranks` holds the number 1.5; ranks are whole numbers from 1 (1 = best, equal = tie)",
    ),
    (
        "ranked",
        {**RANKED, "ranks": [True, 2, 3]},
        "`ranks` holds true; ranks are whole numbers from 1 (1 = best, equal = tie)",
    ),
    (
        "ranked",
        {**RANKED, "completions": ["a", "b", "a "]},
        "`completions` 1 and 3 are the same text with ranks 1 and 2; give them equal ranks or keep one",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a", "a"]},
        "`completions` 1 and 2 are the same text with ranks 1 and 2; give them equal ranks or keep one",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a", "b"]},
        "has neither `ranks` nor `scores`, which other rows have; give them (the order of the list counts only where "
        "no row has any)",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a", "b"], "scores": [0.5]},
        "`scores` has 1 entry for 2 `completions`; give one score per completion (higher is better, equal = tie)",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a", "b"], "scores": [float("nan"), 1]},
        "`scores` holds the number nan; give finite numbers",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a", "b"], "scores": ["4", "5"]},
        "`scores` holds the text '4'; give finite numbers",
    ),
    (
        "ranked",
        {"prompt": "Hi", "completions": ["a", "a"], "scores": [4, 5]},
        "`completions` 1 and 2 are the same text with ranks 2 and 1; give them equal ranks or keep one",
    ),
    (
        "pairs",
        {**PAIR, "rejected": "a"},
        "`chosen` and `rejected` are the same text; there is nothing to learn from it; remove the row",
    ),
    ("pairs", {**PAIR, "chosen": ""}, "`chosen` is empty; give some text or remove the row"),
    ("pairs", {**PAIR, "margin": float("nan")}, "`margin` is the number nan; give a finite number"),
    ("pairs", {**PAIR, "margin": "big"}, "`margin` is the text 'big'; give a finite number"),
    ("pairs", {**PAIR, "margin": True}, "`margin` is true; give a finite number"),
    ("pairs", {**PAIR, "weight": 0}, "`weight` is the number 0; give a finite number above 0"),
    ("pairs", {**PAIR, "group": [1]}, "`group` is a list; give a string or a whole number"),
    ("ranked", {**RANKED, "weight": float("inf")}, "`weight` is the number inf; give a finite number above 0"),
    ("ranked", {**RANKED, "labeler": ["Ann"]}, "`labeler` is a list; give a string or a whole number"),
    ("ranked", {**RANKED, "margin": "big"}, "`margin` is the text 'big'; give a finite number"),
    (
        "pairs",
        {"chosen": "a", "rejected": "b"},
        "there is no `prompt`, and `chosen` and `rejected` are not dialogues that differ only in their last turn; "
        "give `prompt`",
    ),
    (
        "pairs",
        {**PAIR, "chosen": [{**USER, "content": "Other"}, SAYS]},
        "`chosen` has 2 turns that do not begin with the prompt; give the assistant's answer alone",
    ),
    ("thumbs", {**THUMB, "label": 1}, "`label` is the number 1; give true (a good answer) or false (a bad one)"),
    ("thumbs", {**THUMB, "label": "up"}, "`label` is the text 'up'; give true (a good answer) or false (a bad one)"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_good_rows_pass(kind):
    validate(GOOD[kind], kind, "data.jsonl")


@pytest.mark.parametrize(("kind", "row", "fault"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_told_with_its_row_what_was_found_and_what_is_needed(kind, row, fault):
    with pytest.raises(UserError) as error:
        validate([GOOD[kind][0], row], kind, "data.jsonl")
    told = "data.jsonl: 1 fault in 2 rows; nothing was loaded. Fix these rows, or give other data."
    assert str(error.value) == f"{told}\n  row 2: {fault}"


@pytest.mark.parametrize("kind", KINDS)
def test_all_faults_of_a_source_come_in_one_error(kind):
    cases = [(row, fault) for of, row, fault in FAULTS if of == kind]
    with pytest.raises(UserError) as error:
        validate([row for row, _ in cases], kind, "data.jsonl")
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"data.jsonl: {len(cases)} fault{'s' if len(cases) > 1 else ''} in {len(cases)} row")
    assert lines == [f"  row {number}: {fault}" for number, (_, fault) in enumerate(cases, start=1)]


def test_two_faults_of_one_row_are_both_told():
    with pytest.raises(UserError) as error:
        validate([{"prompt": "", "completions": ["a", "b"], "ranks": [1]}], "ranked", "x")
    assert str(error.value).splitlines()[1:] == [
        "  row 1: `prompt` is empty; give some text or remove the row",
        "  row 1: `ranks` has 1 entry for 2 `completions`; give one rank per completion (1 = best, equal = tie)",
    ]


def test_lines_and_faults_of_reading_are_told_in_order():
    context = Context("line", numbers=[1, 5], faults=[(3, "is not valid JSON")])
    with pytest.raises(UserError) as error:
        validate([{"text": "a"}, {"text": ""}], "text", "x.jsonl", context)
    assert str(error.value) == (
        "x.jsonl: 2 faults in 3 rows; nothing was loaded. Fix these rows, or give other data.\n"
        "  line 3: is not valid JSON\n"
        "  line 5: `text` is empty; give some text or remove the row"
    )


def test_twenty_faults_are_shown_and_the_rest_counted():
    with pytest.raises(UserError) as error:
        validate([{"text": ""}] * 33, "text", "x")
    lines = str(error.value).splitlines()
    assert lines[0].startswith("x: 33 faults in 33 rows") and len(lines) == 22
    assert lines[-1] == "  ... and 13 more"


def test_no_rows_are_a_fault():
    with pytest.raises(UserError, match="x holds no rows; ranked needs at least one with `prompt` \\+ `completions`"):
        validate([], "ranked", "x")


@pytest.mark.parametrize(
    ("columns", "kinds", "kind"),
    [
        (["prompt", "completions", "scores"], ("ranked", "pairs", "thumbs"), "ranked"),
        (["chosen", "rejected"], ("ranked", "pairs", "thumbs"), "pairs"),
        (["prompt", "completion", "label"], ("demonstrations", "thumbs"), "thumbs"),
        (["prompt", "completion"], ("demonstrations", "thumbs"), "demonstrations"),
        (["prompt", "completions"], ("prompts",), "prompts"),
        (["prompt"], ("ranked", "pairs"), None),
    ],
)
def test_the_kind_shows_in_the_columns(columns, kinds, kind):
    assert detect_kind(columns, kinds) == kind
