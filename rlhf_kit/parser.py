"""argparse for all commands; apart from `terminal.py`, which is imported before Ctrl-C is looked after."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from rlhf_kit import escaping

# What follows an option as its value, though it begins as an option does: argparse itself knows no -1e9 and no -inf.
NEGATIVE = re.compile(r"-\.?\d|-(inf|infinity|nan)$", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """argparse's, whose complaints quote what was typed; options are given by whole names, numbers in any form."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, **options)
        self._negative_number_matcher = NEGATIVE

    def error(self, message: str) -> NoReturn:
        super().error(escaping.terminal(message))
