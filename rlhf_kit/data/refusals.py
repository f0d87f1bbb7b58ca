"""What a chat template refuses, reported with the rows and the template's own message."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_kit.errors import UserError

SHOWN = 5  # rows and sentences that are named


class TemplateRefusal(UserError):
    """A chat template does not take a dialogue: its own words, and what to do about it if that is known."""

    def __init__(self, words: str, advice: str = ""):
        super().__init__(f"The tokenizer's chat template refuses the dialogue: {words.rstrip('.')}. {advice}".rstrip())
        self.words, self.advice = words, advice


class UnstableTemplate(UserError):
    """A chat template writes an answer otherwise once more turns follow (thoughts of earlier turns are left out)."""


def refused_rows(refusals: Mapping[int | str, TemplateRefusal], rows: int, name: str = "") -> UserError:
    """One error of the refusals by row: each of the template's sentences with the rows it was said of."""
    numbers_of: dict[str, list[str]] = {}
    for row, refusal in refusals.items():
        numbers_of.setdefault(refusal.words, []).append(str(row))
    reasons = [f"{words} (row {_first(numbers, ', ')})" for words, numbers in numbers_of.items()]
    advice = " ".join(dict.fromkeys(refusal.advice for refusal in refusals.values() if refusal.advice))
    return UserError(
        f"{name + ': ' if name else ''}the tokenizer's chat template refuses {len(refusals)} of {rows} rows: "
        f"{_first(reasons, '; ')}. {advice or 'Fix these rows, or give another chat template.'}"
    )


def _first(items: list[str], between: str) -> str:
    return between.join(items[:SHOWN] + [f"and {len(items) - SHOWN} more"] * (len(items) > SHOWN))
