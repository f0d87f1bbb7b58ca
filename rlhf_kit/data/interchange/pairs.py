"""Rankings as pairs: TRL's preference datasets, the transcripts of HH-RLHF, and the battles of an arena."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rlhf_kit.data.formats import Context, sift
from rlhf_kit.data.groups import Row, pairs_of, rankings
from rlhf_kit.data.interchange.records import Skip, Tally
from rlhf_kit.data.messages import as_messages, with_opening
from rlhf_kit.data.shapes import SPEAKERS, TURN

NO_ORDER = "all answers tie: there is no pair"


def read_trl(records: Sequence[Any], tally: Tally) -> list[Row]:
    """Pairs with an explicit prompt or an implicit one; those of one `group` are one ranking."""
    good, _, bad = sift([_with_prompt(record) for record in records], "pairs", Context())
    tally.left_out.update({fault: len(numbers) for fault, numbers in bad.items()})
    return rankings([with_opening(record) for record in good])


def _with_prompt(record: Any) -> Any:
    """The prompt of two texts that begin with it: what they share, up to the last word that is whole in both."""
    if not isinstance(record, Mapping) or record.get("prompt") is not None:
        return record
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return record
    shared = os.path.commonprefix([chosen, rejected])
    end = max((at for at, letter in enumerate(shared) if letter.isspace()), default=0)
    if not shared[:end].strip():
        return record
    return {**record, "prompt": shared[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def write_trl(rows: Sequence[Mapping[str, Any]], skipped: Counter) -> list[Row]:
    """Every strictly ordered pair, with `weight` and `group`; dialogues in all rows as soon as one row has them."""
    talk = not all(isinstance(row["prompt"], str) for row in rows)
    records = []
    for group, row in enumerate(rows, start=1):
        pairs = pairs_of(row, group)
        skipped[NO_ORDER] += not pairs
        for pair in pairs:
            if talk:
                pair["prompt"] = as_messages(pair["prompt"])
                for side in ("chosen", "rejected"):
                    pair[side] = [{"role": "assistant", "content": pair[side]}]
            records.append(pair)
    return records


def write_hh(rows: Sequence[Mapping[str, Any]], skipped: Counter) -> list[Row]:
    """Pairs of transcripts; the format has no place for `margin`, `weight`, `labeler` and which list a pair is of."""
    records = []
    for row in rows:
        pairs = pairs_of(row, 0)
        try:
            skipped[NO_ORDER] += not pairs
            records += [
                {side: _transcript(pair["prompt"], pair[side]) for side in ("chosen", "rejected")} for pair in pairs
            ]
        except Skip as reason:
            skipped[str(reason)] += 1
    return records


def write_arena(rows: Sequence[Mapping[str, Any]], skipped: Counter) -> list[Row]:
    """A battle for every two answers of a ranking, ties too; the judge is its labeler. `models`, one name an answer,
    are what wrote them where a row has it; else their places."""
    battles = []
    for number, row in enumerate(rows, start=1):
        names = row.get("models") or [f"answer-{place}" for place in range(1, len(row["completions"]) + 1)]
        answers = list(zip(names, row["completions"], row["ranks"], strict=True))
        for (model_a, text_a, rank_a), (model_b, text_b, rank_b) in combinations(answers, 2):
            talks = {
                f"conversation_{side}": [*as_messages(row["prompt"]), {"role": "assistant", "content": text}]
                for side, text in (("a", text_a), ("b", text_b))
            }
            winner = "tie" if rank_a == rank_b else "model_a" if rank_a < rank_b else "model_b"
            battles.append(
                {"question_id": str(number), "model_a": model_a, "model_b": model_b, "winner": winner,
                 "judge": row.get("labeler") or "nobody", **talks, "turn": 1}
            )  # fmt: skip
    return battles


def _transcript(prompt: Any, answer: str) -> str:
    speakers = {role: speaker for speaker, role in SPEAKERS.items()}
    turns = [*as_messages(prompt), {"role": "assistant", "content": answer}]
    if any(turn["role"] not in speakers for turn in turns):
        raise Skip("a system turn, which hh-rlhf does not have")
    if any(TURN.search(turn["content"]) for turn in turns):
        raise Skip("a text containing Human: or Assistant:, which would be read as a new turn")
    return "".join(f"\n\n{speakers[turn['role']]}: {turn['content']}" for turn in turns)
