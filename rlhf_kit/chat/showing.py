"""What a conversation looks like in a terminal: answers as they come, side by side, and what may come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_kit.generation.next_token import NextToken
from rlhf_kit.terminal.console import Console

NARROWEST = 32  # columns of an answer beside others
BAR = 24
OTHERS = "(all others 其餘)"
ENDS = {"length": "…", "stopped": "■ stopped 已停止"}  # what is shown behind an answer that did not end by itself


class Alone:
    """The answer of one model, as it comes."""

    def __init__(self, console: Console, names: Sequence[str]):
        self.console, (self.name,), self.shown = console, names, 0

    def __enter__(self) -> Alone:
        if self.console.is_terminal:
            self.console.print(Text(f"{self.name}: ", "bold cyan"), end="")
        return self

    def show(self, texts: Mapping[str, str]) -> None:
        text = texts.get(self.name, "")
        self.console.print(text[self.shown :], end="", soft_wrap=True)
        self.shown = len(text)

    def __exit__(self, *_) -> None:
        self.console.print()


class Beside:
    """The answers of several models: in columns where there is room, else below each other.

    On a terminal they are drawn anew with each token, as much of their ends as has room; at the end they stand whole.
    """

    def __init__(self, console: Console, names: Sequence[str]):
        self.console, self.names = console, names
        self.is_wide = console.is_terminal and console.width >= NARROWEST * len(names)
        self.texts: dict[str, str] = {}

    def __enter__(self) -> Beside:
        is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if is_live else None
        if self.live is not None:
            self.live.start()
        return self

    def show(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        if self.live is not None:
            self.live.update(self._drawn(max(3, self.console.height - 3)), refresh=True)

    def __exit__(self, *_) -> None:
        if self.live is not None:
            self.live.stop()
        if self.is_wide:
            self.console.print(self._drawn(None))
            return
        for name in self.texts:
            self.console.print(Text.assemble((f"{name}: ", "bold cyan"), self._text(name)), soft_wrap=True)

    def _drawn(self, height: int | None) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0), expand=self.is_wide)
        if self.is_wide:
            width = self.console.width // len(self.names) - 2
            for _ in self.names:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*(Text(name, "bold cyan") for name in self.names))
            table.add_row(*(self._end(name, width, height) for name in self.names))
            return table
        each = None if height is None else max(1, height // len(self.names) - 1)
        for name in self.names:
            table.add_row(Text(name, "bold cyan"))
            table.add_row(self._end(name, self.console.width - 2, each))
        return table

    def _text(self, name: str) -> Text:
        return self.console.render_str(self.texts.get(name, ""))

    def _end(self, name: str, width: int, height: int | None) -> Text:
        """The last lines of a text, by the columns that its letters take."""
        lines = self._text(name).wrap(self.console, width, overflow="fold")
        return Text("\n").join(lines if height is None else lines[-height:])


def show_next(console: Console, name: str, view: NextToken, temperature: float) -> None:
    """The candidates with bars and probabilities, the rest, and the entropy."""
    console.print(
        Text.assemble((name, "bold cyan"), f"  entropy 熵 {view.entropy:.3f} nats, temperature {temperature:g}")
    )
    most = view.candidates[0].probability
    bars = ["█" * round(BAR * one.probability / most) for one in view.candidates]
    rows = [(_named(one.text, one.ends), one.probability) for one in view.candidates]
    labels = [console.render_str(label) for label, _ in [*rows, (OTHERS, view.rest)]]
    widest = max(cell_len(label.plain) for label in labels)
    for label, (_, probability), bar in zip(labels, [*rows, (OTHERS, view.rest)], [*bars, ""], strict=True):
        blanks = " " * (widest - cell_len(label.plain))
        line = Text.assemble("  ", label, blanks, f"  {probability:9.7f}  ", (bar, "cyan"))
        console.print(line, soft_wrap=True)


def _named(text: str, ends: bool) -> str:
    """A candidate so that its spaces are seen; an end token by what it does."""
    return f"{text} (end 結束)" if ends else repr(text)
