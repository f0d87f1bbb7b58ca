"""rich's console for tables and bars, on which the text of models and data is text."""

from __future__ import annotations

import rich.console
from rich.cells import cell_len
from rich.text import Text

from rlhf_kit.escaping import terminal

BEGINS, ENDS = "（「『《", "，。、；：！？）」』》"  # what a line does not end with, and what it does not begin with


class Console(rich.console.Console):
    """No string is markup, an emoji's code or an escape sequence, in a table or a line; styles come as `Text`.

    A reader who leaves (`| head`) ends what is shown, not the work.
    """

    def __init__(self, **options):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options) -> Text:
        return super().render_str(terminal(text), **options)

    def tell(self, text: str) -> None:
        """A paragraph: on a terminal in lines, whole for who reads it by program."""
        lines = folded(terminal(text), self.width) if self.is_terminal else [text]
        self.print("\n".join(lines), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def folded(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces and beside Chinese letters; rich's fold inside a name.

    >>> folded("ppo 比 sft：進步：answers-right、text。", 18)
    ['ppo 比 sft：進步：', 'answers-right、', 'text。']
    """
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _pieces(text: str) -> list[str]:
    """What is not broken: a word or a wide letter, with the marks that belong to it and the space behind it."""
    pieces: list[str] = []
    for letter in text:
        before = pieces[-1][-1] if pieces else ""
        beside = before.isspace() or 2 in (cell_len(before), cell_len(letter)) and letter not in ENDS
        if not before or beside and before not in BEGINS and not letter.isspace():
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces
