"""`rlhf-kit demo --human N`: some of the world's lists ranked by the user, and what they moved in the reward model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.feedback.asking import LETTERS, PREVIOUS, QUIT, Read, ask_ranking
from rlhf_kit.feedback.truth import Compared, compare, in_order
from rlhf_kit.models.heads import score_texts
from rlhf_kit.terminal.console import Console
from rlhf_kit.world import rows

LABELER = "you"
Scores = Callable[[Any, Sequence[str]], list[float]]


def lists_to_rank(count: int, seed: int) -> list[dict[str, Any]]:
    """Lists of the world's training rankings, drawn by the seed, each in an order that tells nothing."""
    draw = random.Random(f"human {seed}")
    chosen = draw.sample(rows("ranked", "train"), count)
    return [
        {"prompt": row["prompt"], "completions": draw.sample(texts, len(texts))}
        for row in chosen
        for texts in [list(dict.fromkeys(row["completions"]))]
    ]


def rank(console: Console, read: Read, lists: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lists as the user ranks them, as ranked rows; `q` ends it.

    What is skipped, is not rankable or ties as a whole orders nothing, and is left out.
    """
    ranked: list[dict[str, Any] | None] = []
    while len(ranked) < len(lists):
        row = lists[len(ranked)]
        console.print(f"[{len(ranked) + 1}/{len(lists)}] Which answer is best? 哪個回答最好？ (?: keys 按鍵)")
        answers = [(str(at), text) for at, text in enumerate(row["completions"])]
        kind, content = ask_ranking(console, read, row["prompt"], answers)
        if kind == QUIT:
            break
        if kind == PREVIOUS:
            del ranked[-1:]
            continue
        ranks = [content["ranks"][name] for name, _ in answers] if "ranks" in content else None
        ranked.append(None if ranks is None else {**row, "ranks": ranks, "labeler": LABELER})
    return [row for row in ranked if row is not None and len(set(row["ranks"])) > 1]


@dataclass(frozen=True)
class Moved:
    """One list: pairs that the user orders, and of these those that the model orders alike before and after."""

    prompt: str
    order: str  # letters, best first
    before: str
    after: str
    pairs: int
    right_before: int
    right_after: int
    compared: Compared | None


def moved(ranked: Sequence[dict[str, Any]], before: Scores, after: Scores) -> list[Moved]:
    """What the second model says of each list otherwise than the first. before, after: scores of the answers."""
    found = []
    for row in ranked:
        texts, ranks = row["completions"], row["ranks"]
        scores = [model(row["prompt"], texts) for model in (before, after)]
        right = [in_order(ranks, own)[0] for own in scores]
        pairs = sum(a != b for a, b in combinations(ranks, 2))
        orders = [order([-value for value in own]) for own in scores]
        found.append(
            Moved(
                row["prompt"][-1]["content"],
                order(ranks),
                *orders,
                pairs,
                *right,
                compare(row["prompt"], texts, ranks),
            )
        )
    return found


def order(values: Sequence[float]) -> str:
    """Letters of answers from the smallest value to the largest, `=` for a tie.

    >>> order([2, 1, 2])
    'b a=c'
    """
    groups: dict[float, list[str]] = {}
    for letter, value in zip(LETTERS, values, strict=False):
        groups.setdefault(value, []).append(letter)
    return " ".join("=".join(groups[value]) for value in sorted(groups))


@torch.no_grad()
def scores_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
    """A reward model as a function of a prompt and its answers."""
    return lambda prompt, texts: score_texts(model, tokenizer, [prompt] * len(texts), list(texts)).tolist()
