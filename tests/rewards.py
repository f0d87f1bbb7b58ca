"""Reward functions for the tests that start a run by its command line."""


def brief(completions, **columns) -> list[float]:
    """A reward that likes short answers."""
    return [-len(completion[0]["content"]) / 20 for completion in completions]
