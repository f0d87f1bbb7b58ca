"""argparse for all commands; apart from `terminal.py`, which is imported before Ctrl-C is looked after."""

from __future__ import annotations

import argparse
from typing import NoReturn

from rlhf_kit import escaping


class Parser(argparse.ArgumentParser):
    """argparse's, whose complaints quote what was typed; an option is given by its whole name."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        super().error(escaping.terminal(message))
