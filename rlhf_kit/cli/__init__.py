"""The command line: one table of commands, one reader, one help."""

from rlhf_kit.cli.commands import main

__all__ = ["main"]
