"""A ranking typed in the terminal: every key by hand, what is warned of, and that a model's text moves no cursor."""

import io

import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.feedback.asking import PREVIOUS, QUIT, RANK_HELP, THUMB_HELP, ask_ranking, ask_thumb, parse_order
from rlhf_kit.terminal.console import Console

FLAGS = ("hallucination", "opinion")
ANSWERS = [("11", "one"), ("12", "two"), ("13", "three")]


class Typist:
    """Types these lines; then the input ends."""

    def __init__(self, *lines: str):
        self.lines, self.prompts = list(lines), []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


def ranked(*lines: str, answers=ANSWERS, **more) -> tuple[str, dict, str]:
    console = Console(file=io.StringIO(), width=100)
    kind, content = ask_ranking(console, Typist(*lines), "Why?", answers, FLAGS, **more)
    return kind, content, console.file.getvalue()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("b a c", [["b"], ["a"], ["c"]]), ("bac", [["b"], ["a"], ["c"]]), ("b a=c", [["b"], ["a", "c"]]),
        ("B = A = C", [["b", "a", "c"]]), ("b > a > c", [["b"], ["a"], ["c"]]), ("b,a,c", [["b"], ["a"], ["c"]]),
        ("ba=c", [["b"], ["a", "c"]]),
    ],
)  # fmt: skip
def test_an_order_is_letters_best_first(line, expected):
    assert parse_order(line, "abc") == expected


@pytest.mark.parametrize(
    ("line", "fault"),
    [("b a", "Not in the order: c"), ("a b c d", "no answer 'd'"), ("a a b c", "a appears twice"), ("a b 3", "'3'"),
     ("= a b c", "no answer"), ("hello", "no answer 'h'"), ("a;b;c", "';'")],
)  # fmt: skip
def test_what_is_no_order_is_told(line, fault):
    assert fault in parse_order(line, "abc")


def test_enter_twice_submits_and_an_untouched_order_is_warned_of():
    kind, content, said = ranked("", "")
    assert (kind, content) == ("ranked", {"ranks": {"11": 1, "12": 2, "13": 3}})
    assert "did not change the order" in said


def test_an_order_with_a_tie_is_kept():
    kind, content, said = ranked("c a=b", "", "")
    assert content == {"ranks": {"13": 1, "11": 2, "12": 2}} and "did not change" not in said


def test_ratings_remarks_and_comments_are_kept():
    lines = ["7 c", "5a", "! c opinion", "! a hallucination", "! a hallucination", "# so it is", "c a b", "", ""]
    _, content, _ = ranked(*lines)
    assert content == {
        "ranks": {"13": 1, "11": 2, "12": 3}, "ratings": {"13": 7, "11": 5}, "flags": {"13": ["opinion"]},
        "comment": "so it is",
    }  # fmt: skip


def test_ratings_order_and_equal_ones_tie():
    _, content, _ = ranked("2 a", "6 b", "6 c", "o", "", "")
    assert content["ranks"] == {"12": 1, "13": 1, "11": 2}
    _, content, _ = ranked("6 c", "o", "", "")
    assert content["ranks"] == {"13": 1, "11": 2, "12": 3}
    assert ranked("o", "", "")[1]["ranks"] == {"11": 1, "12": 2, "13": 3}


def test_a_contradiction_is_told_and_can_be_gone_back_on():
    kind, content, said = ranked("7 c", "1 a", "", "b", "c a b", "", "")
    assert "Rated higher, ranked lower" in said and "c (7) - a (1)" in said
    assert (kind, content["ranks"]) == ("ranked", {"13": 1, "11": 2, "12": 3})


def test_undo_takes_back_a_step_and_then_leads_to_the_last_task():
    kind, content, _ = ranked("c b a", "b c a", "u", "", "")
    assert content["ranks"] == {"13": 1, "12": 2, "11": 3}
    assert ranked("7 a", "u", "u")[0] == PREVIOUS


def test_other_decisions():
    assert ranked("n")[:2] == ("unrankable", {})
    assert ranked("7 a", "# none is true", "n")[:2] == (
        "unrankable", {"ratings": {"11": 7}, "comment": "none is true"}
    )  # fmt: skip
    assert ranked("s")[:2] == ("skipped", {}) and ranked("s not mine")[:2] == ("skipped", {"reason": "not mine"})
    assert ranked("q")[0] == ranked()[0] == QUIT


def test_what_was_decided_is_begun_from():
    was = {"ranks": {"11": 2, "12": 1, "13": 2}, "ratings": {"12": 6}, "flags": {"11": ["opinion"]}, "comment": "x"}
    kind, content, said = ranked("", "", was=was)
    assert (kind, content) == ("ranked", was) and "did not change" not in said


@pytest.mark.parametrize("line", ["8 a", "5 d", "! d opinion", "! a oppinion", "! a", "xyz", "a b"])
def test_what_is_no_key_changes_nothing_and_says_so(line):
    _, content, said = ranked(line, "", "")
    assert content == {"ranks": {"11": 1, "12": 2, "13": 3}}
    assert any(words in said for words in ("There is no answer", "! LETTER NAME", "Not in the order"))


def test_help_shows_every_key():
    assert all(line in ranked("?", "q")[2] for line in RANK_HELP.splitlines())
    console = Console(file=io.StringIO(), width=100)
    ask_thumb(console, Typist("?", "q"), "P", ("1", "a"))
    assert all(line in console.file.getvalue() for line in THUMB_HELP.splitlines())


def test_more_answers_than_keys_are_refused():
    with pytest.raises(UserError, match="13 answers; the terminal takes 12"):
        ranked("q", answers=[(str(at), "x") for at in range(13)])


def test_text_of_a_model_moves_nothing():
    hostile = [("1", "\x1b[2J\u202eevil [bold]x[/bold] :smile:"), ("2", "b")]
    _, _, said = ranked("q", answers=hostile)
    assert "\x1b" not in said and "\u202e" not in said
    assert "\\u001b[2J\\u202eevil [bold]x[/bold] :smile:" in said


def test_only_the_letter_of_an_answer_and_the_role_of_a_turn_are_styled():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    ask_ranking(console, Typist("q"), "Why?", ANSWERS)
    said = console.file.getvalue()
    assert "\x1b[1;36ma  \x1b[0mone\n" in said and "\x1b[1muser: \x1b[0mWhy?\n" in said


def test_a_dialogue_is_shown_by_turns():
    console = Console(file=io.StringIO(), width=100)
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    ask_ranking(console, Typist("q"), prompt, ANSWERS)
    said = console.file.getvalue()
    assert "user: Hi" in said and "assistant: Yes?" in said and "a  one" in said and "c  three" in said


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["y"], ("thumb", {"label": True})),
        (["n"], ("thumb", {"label": False})),
        (["! opinion", "# fine", "y"], ("thumb", {"label": True, "flags": {"7": ["opinion"]}, "comment": "fine"})),
        (["! opinion", "! opinion", "n"], ("thumb", {"label": False})),
        (["maybe", "y"], ("thumb", {"label": True})),
        (["s dull"], ("skipped", {"reason": "dull"})),
        (["u"], (PREVIOUS, {})),
        ([], (QUIT, {})),
    ],
)
def test_a_thumb_is_a_key(lines, expected):
    console = Console(file=io.StringIO(), width=100)
    assert ask_thumb(console, Typist(*lines), "P", ("7", "text"), FLAGS) == expected
