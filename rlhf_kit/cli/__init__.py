"""The command line: one table of commands, one reader of options, one help, one way to end."""

from rlhf_kit.cli.run import main

__all__ = ["main"]
