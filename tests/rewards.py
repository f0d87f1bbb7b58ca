"""Reward functions for the tests that start a run by its command line."""

import time


def brief(completions, **columns) -> list[float]:
    """A reward that likes short answers."""
    return [-len(completion[0]["content"]) / 20 for completion in completions]


def brief_slowly(completions, **columns) -> list[float]:
    """The same, in a run that can be looked at while it trains."""
    time.sleep(0.2)
    return brief(completions, **columns)
