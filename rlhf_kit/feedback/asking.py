"""A ranking or a thumb asked for in the terminal: a line typed for each step, so that a screen reader can follow.

It needs no store: `rlhf-kit label` keeps what it returns in one, `rlhf-kit demo --human` in a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from rlhf_kit.data.messages import as_messages
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.terminal.console import Console

LETTERS = "abcdefghijkl"  # of answers; n, o, q, s and u are keys
RANK_HELP = """\
b a=c d     the order, best first; = is a tie      排序：最好的在前，= 表示並列
5 b         rate answer b from 1 to 7              替 b 打分數（1 到 7）
! b NAME    a remark on answer b, or take it off   替 b 加註記，或取消
# TEXT      a comment                              意見
o           order by the ratings                   依分數排列
n           not rankable                           無法排序
s WHY       skip                                   跳過
u           undo; at the beginning, the last one   復原；沒得復原時回到上一筆
Enter       review, then submit                    檢查，再送出
q           quit; what was submitted is kept       離開；已送出的都會保留
?           these keys                             顯示這些按鍵"""
THUMB_HELP = """\
y           good 讚
n           bad 噓
! NAME      a remark, or take it off 註記
# TEXT      a comment 意見
s WHY       skip 跳過
u           the last one again 回到上一筆
q           quit; what was submitted is kept 離開
?           these keys 顯示這些按鍵"""

PREVIOUS, QUIT = "previous", "quit"  # besides the kinds of a decision
Read = Callable[[str], str]


@dataclass
class Draft:
    """A ranking that is being made. `groups`: letters from best to worst, those of a group tie."""

    groups: list[list[str]]
    ratings: dict[str, int] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    comment: str = ""
    touched: bool = False

    def copy(self) -> Draft:
        flags = {letter: list(names) for letter, names in self.flags.items()}
        return Draft([list(group) for group in self.groups], dict(self.ratings), flags, self.comment, self.touched)

    @property
    def order(self) -> str:
        return " ".join("=".join(group) for group in self.groups)

    def content(self, names: Mapping[str, str], ranked: bool = True) -> dict[str, Any]:
        """As a store keeps it. names: of the answers, by letter."""
        ranks = {names[letter]: rank for rank, group in enumerate(self.groups, start=1) for letter in group}
        made: dict[str, Any] = {"ranks": ranks} if ranked else {}
        made |= {"ratings": {names[letter]: value for letter, value in self.ratings.items()}} if self.ratings else {}
        flags = {names[letter]: flags for letter, flags in self.flags.items() if flags}
        return made | ({"flags": flags} if flags else {}) | ({"comment": self.comment} if self.comment else {})

    def contradictions(self) -> list[str]:
        """Letters of two answers each, the better rated of which is ranked worse."""
        rank = {letter: at for at, group in enumerate(self.groups) for letter in group}
        return [
            f"{one} ({self.ratings[one]}) - {other} ({self.ratings[other]})"
            for one in self.ratings
            for other in self.ratings
            if self.ratings[one] > self.ratings[other] and rank[one] > rank[other]
        ]


def parse_order(line: str, letters: str) -> list[list[str]] | str:
    """Groups of letters, best first, or what is wrong with the line.

    >>> parse_order("b a=c", "abc")
    [['b'], ['a', 'c']]
    >>> parse_order("bca", "abc")
    [['b'], ['c'], ['a']]
    """
    tied = re.sub(r"\s*=\s*", "=", line.lower().replace(">", " ").replace(",", " "))
    groups = [group.split("=") for word in tied.split() for group in re.findall(r"\w(?:=\w)*|\S", word)]
    named = [letter for group in groups for letter in group]
    unknown = [letter or "=" for letter in named if letter not in list(letters)]
    if unknown:
        return f"There is no answer {unknown[0]!r}; the answers are {' '.join(letters)}. 沒有這個回答。"
    twice = next((letter for letter in named if named.count(letter) > 1), None)
    if twice:
        return f"{twice} appears twice. {twice} 出現了兩次。"
    missing = [letter for letter in letters if letter not in named]
    if missing:
        return f"Not in the order: {' '.join(missing)}. 還沒有排：{' '.join(missing)}"
    return groups


def show_task(console: Console, prompt: Any, answers: Mapping[str, str]) -> None:
    """The prompt's turns and the answers, by letter; all of it as it stands."""
    console.rule()
    for turn in as_messages(prompt):
        console.print(Text.assemble((f"{turn['role']}: ", "bold"), console.render_str(turn["content"])))
    for letter, text in answers.items():
        console.print()
        console.print(Text.assemble((f"{letter}  ", "bold cyan"), console.render_str(text)), soft_wrap=True)
    console.print()


def ask_ranking(
    console: Console,
    read: Read,
    prompt: Any,
    answers: Sequence[tuple[str, str]],
    flags: Sequence[str] = (),
    was: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """(kind of the decision, or PREVIOUS or QUIT; its content) that a person typed.

    Args:
        read: gives a line for a prompt, as `input` does; EOFError is QUIT.
        answers: (name, text) in the order they are shown.
        was: the content of an earlier decision, to begin from.
    """
    if len(answers) > len(LETTERS):
        raise UserError(f"A list has {len(answers)} answers; the terminal takes {len(LETTERS)}. Use `rlhf-kit ui`.")
    letters = LETTERS[: len(answers)]
    names = {letter: name for letter, (name, _) in zip(letters, answers, strict=True)}
    show_task(console, prompt, {letter: text for letter, (_, text) in zip(letters, answers, strict=True)})
    draft, undone = _begun(names, was), []
    while True:
        line = _line(console, read, f"[{draft.order}] ")
        before = draft.copy()
        done = _ranking_step(console, read, line, draft, letters, flags)
        if done == "undo":
            if not undone:
                return PREVIOUS, {}
            draft = undone.pop()
        elif done == "skipped":
            reason = line[1:].strip()
            return done, {"reason": reason} if reason else {}
        elif done == QUIT:
            return QUIT, {}
        elif done is not None:
            return done, draft.content(names, ranked=done == "ranked")
        if draft != before and done != "undo":
            undone.append(before)


def _begun(names: Mapping[str, str], was: Mapping[str, Any] | None) -> Draft:
    if not was or "ranks" not in was:
        return Draft([[letter] for letter in names])
    letters = {name: letter for letter, name in names.items()}
    groups: dict[int, list[str]] = {}
    for name, rank in was["ranks"].items():
        groups.setdefault(rank, []).append(letters[name])
    return Draft(
        [groups[rank] for rank in sorted(groups)],
        {letters[name]: value for name, value in was.get("ratings", {}).items()},
        {letters[name]: list(value) for name, value in was.get("flags", {}).items()},
        was.get("comment", ""),
        touched=True,
    )


def _ranking_step(
    console: Console, read: Read, line: str, draft: Draft, letters: str, flags: Sequence[str]
) -> str | None:
    """Change the draft as a line says; what ends the asking, or None."""
    ends = {"n": "unrankable", "u": "undo", "q": QUIT}
    if line == "":
        return "ranked" if _reviewed(console, read, draft) else None
    if line in ends or line.partition(" ")[0] == "s":
        return ends.get(line, "skipped")
    if line == "?":
        console.print(RANK_HELP)
    elif line == "o":
        _by_rating(draft)
    elif line.startswith("#"):
        draft.comment = line[1:].strip()
    elif line.startswith("!"):
        _flag(console, draft, letters, flags, line[1:].split())
    elif rated := re.fullmatch(r"([1-7])\s*(\w)", line):
        _rate(console, draft, letters, rated[2], int(rated[1]))
    elif isinstance(groups := parse_order(line, letters), str):
        console.print(f"{groups} ? shows the keys.")
    else:
        draft.groups, draft.touched = groups, True
    return None


def _rate(console: Console, draft: Draft, letters: str, letter: str, value: int) -> None:
    if letter in letters:
        draft.ratings[letter] = value
        console.print(f"{letter}: {value}")
    else:
        console.print(f"There is no answer {letter!r}; the answers are {' '.join(letters)}. 沒有這個回答。")


def _flag(console: Console, draft: Draft, letters: str, flags: Sequence[str], words: list[str]) -> None:
    if len(words) != 2 or words[0] not in letters or words[1] not in flags:
        near = did_you_mean(words[-1], flags) if words else ""
        console.print(f"! LETTER NAME, with one of: {', '.join(flags)}.{near}")
        return
    letter, name = words
    own = draft.flags.setdefault(letter, [])
    (own.remove if name in own else own.append)(name)
    console.print(f"{letter}: {', '.join(own) or '-'}")


def _by_rating(draft: Draft) -> None:
    """Best rated first, equal ratings tie; what has none stays in its order at the end."""
    letters = [letter for group in draft.groups for letter in group]
    rated = sorted({draft.ratings[letter] for letter in letters if letter in draft.ratings}, reverse=True)
    if not rated:
        return
    groups = [[letter for letter in letters if draft.ratings.get(letter) == value] for value in rated]
    draft.groups = groups + [[letter] for letter in letters if letter not in draft.ratings]
    draft.touched = True


def _reviewed(console: Console, read: Read, draft: Draft) -> bool:
    """Whether the ranking is submitted, after what is odd about it was said."""
    console.print(f"Your ranking 你的排序: {draft.order}")
    if not draft.touched:
        console.print("You did not change the order in which they were shown. 你沒有動過順序。")
    for pair in draft.contradictions():
        console.print(f"Rated higher, ranked lower 分數較高卻排在後面: {pair}")
    return _line(console, read, "Enter: submit 送出; b: back 返回 ") == ""


def ask_thumb(
    console: Console, read: Read, prompt: Any, answer: tuple[str, str], flags: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """As `ask_ranking`, of one answer. answer: (name, text)."""
    name, text = answer
    show_task(console, prompt, {"": text})
    own: list[str] = []
    comment = ""
    while True:
        line = _line(console, read, "y 讚 / n 噓 ")
        if line in ("y", "n"):
            content: dict[str, Any] = {"label": line == "y"}
            content |= {"flags": {name: own}} if own else {}
            return "thumb", content | ({"comment": comment} if comment else {})
        if line.partition(" ")[0] == "s":
            reason = line[1:].strip()
            return "skipped", {"reason": reason} if reason else {}
        if line in ("u", "q"):
            return {"u": PREVIOUS, "q": QUIT}[line], {}
        if line.startswith("#"):
            comment = line[1:].strip()
        elif line.startswith("!") and line[1:].strip() in flags:
            flag = line[1:].strip()
            (own.remove if flag in own else own.append)(flag)
            console.print(", ".join(own) or "-")
        else:
            console.print(THUMB_HELP)


def _line(console: Console, read: Read, prompt: str) -> str:
    try:
        return read(prompt).strip()
    except EOFError:
        console.print()
        return "q"
