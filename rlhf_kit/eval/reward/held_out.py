"""Held-out rows as a reward model reads and scores them, item by item, and the figures of all its scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.data.labelers import agreement
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.items import Item
from rlhf_kit.eval.reward.ranking import OF_A_LIST, Measures, RankedList, Rankings, Thumbs, log_losses, on_its_side
from rlhf_kit.eval.reward.scoring import Reader, score_each
from rlhf_kit.hashes import text_hash
from rlhf_kit.intervals import mean, numbered, point
from rlhf_kit.models import heads

Row = Mapping[str, Any]


class HeldOut:
    """Canonical rows of rankings, pairs or thumbs (`data.loading.load`) for a reward model of this `config`.

    `ids`: of the rows, in order; `prompts`: what tells their prompts apart. An item's details hold all that the
    figures are made of: scores (None: a completion longer than the model's context), ranks or label, lengths.

    Raises UserError where the model can read nothing that could be measured.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig):
        self.rows, self.tokenizer = rows, tokenizer
        self.kind = "thumbs" if "label" in rows[0] else "ranked"
        self.scale, self.zero = heads.logit_scale(config), heads.logit_zero(config)
        self.ids = [str(number) for number in range(len(rows))]
        self.prompts = [prompt_key(row["prompt"]) for row in rows]
        self.completions = [row["completions"] if "completions" in row else [row["completion"]] for row in rows]
        self.reader = Reader(config, tokenizer)
        self.readings = [self.reader(row["prompt"], texts) for row, texts in zip(rows, self.completions, strict=True)]
        fits = [sum(reading.fits for reading in each) for each in self.readings]
        if max(fits) < self.fewest:
            what = "list has two completions that fit" if self.kind == "ranked" else "completion fits"
            raise UserError(f"No {what} the model's context ({told(self.left_out)}).")

    @property
    def fewest(self) -> int:
        """Completions with a score that a row must have to be measured."""
        return 2 if self.kind == "ranked" else 1

    @property
    def left_out(self) -> dict[str, int]:
        readings = [reading for each in self.readings for reading in each]
        return {
            "prompts_cut": sum(reading.prompt_cut for reading in readings),
            "completions_too_long": sum(not reading.fits for reading in readings),
        }

    def check_padding(self, model: PreTrainedModel) -> None:
        """Raises UserError for a model whose scores change with the padding; on every process alike."""
        prompts = (row["prompt"] for row in self.rows)
        self.reader.check_padding(model, zip(prompts, self.completions, strict=True))

    # --- items ---

    def ask(self, model: PreTrainedModel, ids: Sequence[str], batch_size: int) -> Iterator[Item]:
        """The scored items of these ids, as they are done. Those of one prompt belong together, see `score_each`."""
        rows = [int(name) for name in ids]
        lists = [
            (
                self.rows[row]["prompt"],
                [text for text, read in zip(self.completions[row], self.readings[row], strict=True) if read.fits],
            )
            for row in rows
        ]
        score = partial(heads.score_texts, model, self.tokenizer, batch_size=batch_size)
        for at, scores in score_each(score, lists, batch_size):
            yield self.item(rows[at], scores)

    def item(self, number: int, scores: Sequence[float]) -> Item:
        """`scores`: of the completions that fit. Raises UserError for one that is no number."""
        if not all(map(math.isfinite, scores)):
            raise UserError(
                f"Row {number + 1}: the reward model gives the scores {', '.join(map(str, scores))}. Its weights are "
                "damaged, or too large for their type; train it again, or convert it to float32."
            )
        row, readings, left = self.rows[number], self.readings[number], iter(scores)
        details = {
            "scores": [next(left) if reading.fits else None for reading in readings],
            **({"label": row["label"]} if self.kind == "thumbs" else {"ranks": list(row["ranks"])}),
            "lengths": [reading.length for reading in readings],
            "prompts_cut": sum(reading.prompt_cut for reading in readings),
        }
        prompt = results.fingerprint(self.prompts[number])
        prompt_hash = text_hash(str(encode_prompt(self.tokenizer, row["prompt"])))
        return Item(self.ids[number], prompt, prompt_hash, "", "", self.worth(details), details=details)

    def worth(self, details: Mapping[str, Any]) -> dict[str, float]:
        """What the scores of a row are worth by themselves; NaN where that is not defined."""
        scores = [score for score in details["scores"] if score is not None]
        if self.kind == "thumbs":
            logits = np.array([self.logit(score) for score in scores])
            up = np.full_like(logits, details["label"])
            values = {"accuracy": on_its_side(logits, up), "log_loss": log_losses(logits, up)}
            return {name: float(each[0]) if scores else math.nan for name, each in values.items()}
        ranks = [rank for rank, score in zip(details["ranks"], details["scores"], strict=True) if score is not None]
        return {name: measure(scores, ranks) for name, measure in OF_A_LIST.items()}

    def logit(self, score: float) -> float:
        """A thumbs-up is as likely as not where the raw score is 0: training on thumbs puts the border there."""
        return self.scale * (score - self.zero)

    # --- all of them ---

    def counted(self, items: Sequence[Item]) -> list[Item]:
        """Those with enough completions that fit."""
        return [item for item in items if sum(score is not None for score in item.details["scores"]) >= self.fewest]

    def measures(self, items: Sequence[Item]) -> Measures:
        """Of counted items."""
        if self.kind == "ranked":
            return Rankings([ranked_list(item) for item in items], self.scale)
        logits = [self.logit(item.details["scores"][0]) for item in items]
        labels, lengths = [item.details["label"] for item in items], [item.details["lengths"][0] for item in items]
        return Thumbs(logits, labels, lengths, [item.cluster for item in items])

    def details(self, items: Sequence[Item]) -> dict[str, Any]:
        """kind, n (what was counted, and what was left out), reliability, length_bins, ceiling; `items`: all."""
        counted = self.counted(items)
        about = self.measures(counted).details()
        lists_left_out = {"lists_left_out": len(items) - len(counted)} if self.kind == "ranked" else {}
        about["n"] |= {**lists_left_out, **self.left_out}
        return {"kind": self.kind, **about, "ceiling": self.ceiling(counted)}

    def ceiling(self, items: Sequence[Item]) -> dict[str, Any] | None:
        """What the labelers' own agreement allows, and how much of it was reached; None without several labelers."""
        if "labeler" not in self.rows[0] or self.kind == "thumbs":
            return None
        agreed = agreement(self.rows)
        if not agreed.pairs:
            return None
        prompts = numbered(item.cluster for item in items)
        accuracy = point(mean([item.scores["pair_accuracy"] for item in items], prompts), prompts)
        return asdict(agreed) | {"of_ceiling": None if agreed.ceiling is None else accuracy / agreed.ceiling}


def ranked_list(item: Item) -> RankedList:
    """What is left of a list without the completions that do not fit."""
    kept = [at for at, score in enumerate(item.details["scores"]) if score is not None]
    columns = ([item.details[name][at] for at in kept] for name in ("scores", "ranks", "lengths"))
    return RankedList(item.cluster, *columns)


def told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
