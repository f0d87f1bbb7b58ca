"""`rlhf-kit eval mc`: multiple choice by likelihood, from rows of `question`, `choices` and `labels` (1 = true).

As TruthfulQA (Lin et al. 2022) by lm-evaluation-harness: `Q: ...`, a line `A:`, and each choice behind a space. `mc1`:
the likeliest choice is true; `mc2`: the share of the true ones in the probability of all. The hub's `truthful_qa` has
choices for each in `mc1_targets` and `mc2_targets`. `acc_norm`: as `mc1`, by log-likelihood per character.
The official figures have six examples before each question: give them by --prompt_file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from rlhf_kit.data.choices import read_choices
from rlhf_kit.eval.items import Item
from rlhf_kit.eval.prompts import choices_behind
from rlhf_kit.eval.task import Task, TaskArguments
from rlhf_kit.generation.likelihood import Request, likelihoods
from rlhf_kit.hashes import text_hash
from rlhf_kit.inputs import MOST_JSON, read_bytes
from rlhf_kit.options import option


@dataclass
class MCArguments(TaskArguments):
    split: str = option("validation", "Split of a folder or a hub dataset. 資料的分割")
    prompt_file: str | None = option(None, "Text to put before every question, such as examples. 題目前的文字")


class MC(Task):
    name, protocol, version, unit = "mc", "truthfulqa", 1, "questions"
    Arguments = MCArguments

    def read(self) -> list[dict[str, Any]]:
        return read_choices(self.options.dataset_name, self.options.split)

    def prepare(self) -> list[str]:
        path = self.options.prompt_file
        self.before = read_bytes(Path(path), MOST_JSON).decode("utf-8", "replace").strip() + "\n\n" if path else ""
        self.requests = self.each(self.request, "question", range(len(self.rows)))
        return [str(number) for number in range(len(self.rows))]

    def request(self, row: Mapping[str, Any]) -> Request:
        choices = [f" {choice}" for choice in row["mc1"] | row["mc2"]]
        return choices_behind(self.tokenizer, f"{self.before}Q: {row['question']}\nA:", choices, self.context)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "prompt": text_hash(self.before)}

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        requests = [self.requests[int(name)] for name in ids]
        for at, likely in likelihoods(model, requests, self.options.max_batch_tokens):
            row = self.rows[int(ids[at])]
            totals = dict(zip(row["mc1"] | row["mc2"], (each.total for each in likely), strict=True))
            answer = max(row["mc1"], key=totals.__getitem__)
            yield Item(ids[at], ids[at], text_hash(row["question"]), answer, answer, scores_of(row, totals))


def scores_of(row: Mapping[str, Any], totals: Mapping[str, float]) -> dict[str, float]:
    """`mc1`, `mc2` and `acc_norm` of a row. `totals`: the log-likelihood of each choice, in nats."""
    by_length = {choice: totals[choice] / len(choice) for choice in row["mc1"]}
    values = np.array([totals[choice] for choice in row["mc2"]])
    shares = np.exp(values - values.max())  # sums of many tokens: exp alone would be 0
    return {
        "mc1": float(row["mc1"][max(row["mc1"], key=totals.__getitem__)]),
        "mc2": float(shares[list(row["mc2"].values())].sum() / shares.sum()),
        "acc_norm": float(row["mc1"][max(by_length, key=by_length.__getitem__)]),
    }
