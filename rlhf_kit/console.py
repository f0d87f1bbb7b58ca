"""rich's console for tables and bars, on which the text of models and data is text."""

from __future__ import annotations

import rich.console
from rich.text import Text

from rlhf_kit.escaping import terminal


class Console(rich.console.Console):
    """No string is markup, an emoji's code or an escape sequence, in a table or a line; styles come as `Text`.

    A reader who leaves (`| head`) ends what is shown, not the work.
    """

    def __init__(self, **options):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options) -> Text:
        return super().render_str(terminal(text), **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
