"""`rlhf-kit eval reward`: does a reward model rank held-out answers as people do, and what does it rely on?

The measures are in `ranking.py`; docs/eval-reward.md says what each of them means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.items import Item, Results
from rlhf_kit.eval.reward.held_out import HeldOut, Row, told
from rlhf_kit.eval.reward.page import HEADLINES, length_sentence, record_of, report_page
from rlhf_kit.eval.reward.scoring import checked_tokenizer
from rlhf_kit.eval.task import OutputArguments, Task
from rlhf_kit.intervals import Figure
from rlhf_kit.models import heads
from rlhf_kit.models.checkpoints import load_config, load_reward_model
from rlhf_kit.models.forward import unwrapped
from rlhf_kit.options import option
from rlhf_kit.pages.shell import REPORT
from rlhf_kit.processes import processes
from rlhf_kit.progress import Progress
from rlhf_kit.terminal.console import Console

KINDS = ("ranked", "pairs", "thumbs")


@dataclass
class RewardArguments(OutputArguments):
    model_name_or_path: str | None = option(None, "A reward model: folder or hub id. 獎勵模型", required=True)
    dataset_name: str | None = option(
        None, "Held-out rankings, pairs or thumbs: file, folder, hub id or world:ranked. 測試資料", required=True
    )
    split: str = option("test", "Split of a folder, a hub dataset or the world. 資料的分割")
    batch_size: int = option(16, "Completions a forward. 批次大小")
    seed: int = option(0, "Of the bootstrap intervals. 亂數種子")


class Reward(Task):
    """Held-out answers scored by a reward model, one ranked list (or thumb) per item."""

    name, protocol, files = "reward", "reward", (REPORT,)
    Arguments = RewardArguments

    @property
    def unit(self) -> str:
        return "thumbs" if self.kind == "thumbs" else "lists"

    def read(self) -> list[Row]:
        rows, self.kind = load(self.options.dataset_name, KINDS, split=self.options.split)
        return list(rows)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return checked_tokenizer(self.model, (row["prompt"] for row in self.rows), self.options.dataset_name)

    def prepare(self) -> list[str]:
        self.config = load_config(self.model, what="a reward model")
        self.held_out = HeldOut(self.rows, self.tokenizer, self.config)
        return self.held_out.ids

    def shares(self, ids: Sequence[str]) -> list[str]:
        return self.held_out.prompts

    def settings(self) -> dict[str, Any]:
        """The calibration too: an adapter's stands in a file that `model_hash` does not read."""
        gain, bias = heads.calibration(self.config)
        logits = {"logit_scale": self.held_out.scale, "logit_zero": self.held_out.zero}
        return {"split": self.options.split, "kind": self.kind, "calibration": {"gain": gain, "bias": bias, **logits}}

    def load(self, device: torch.device) -> PreTrainedModel:
        model = load_reward_model(self.model, tokenizer=self.tokenizer).eval().to(device)
        self.held_out.check_padding(model)
        return model

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        return self.held_out.ask(model, ids, self.options.batch_size)

    def counted(self, items: Sequence[Item]) -> list[Item]:
        return self.held_out.counted(items)

    def figures(self, items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
        return self.held_out.measures(items).figures()

    def details(self, items: Sequence[Item]) -> dict[str, Any]:
        """`scale`: the figures are shares, no percentages."""
        return {**self.held_out.details(items), "logit_scale": self.held_out.scale, "scale": 1.0}

    def show(self, results: Results) -> None:
        show(results)

    def write(self, measured: Results, items: Sequence[Item]) -> None:
        results.write(self.folder / REPORT, report_page(measured, items), self.name)


def evaluate_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    batch_size: int = 16,
    seed: int = 0,
) -> dict:
    """Measure a reward model on canonical rows of rankings, pairs or thumbs (`data.loading.load`).

    Under `accelerate launch` every process scores its share of the prompts and returns the figures of all of them.

    Args:
        batch_size: completions a forward; changes no figure.
        seed: of the bootstrap.

    Returns:
        `kind` ("ranked" or "thumbs"), `scores` (name -> number), `intervals` (name -> (low, high), 95 % over prompts),
        `n` (what was counted, and what was left out), `reliability`, `length_bins` (ranked), `ceiling` (None unless
        several labelers ranked the same answers), `items` (one a row: prompt's fingerprint, scores, ranks or label,
        lengths in tokens, tau; None is the score of a completion that is longer than the model's context).

    Raises:
        UserError: when nothing is left to measure.
    """
    rows = list(rows)
    if not rows:
        raise UserError("There are no rows to measure the reward model on.")
    held_out, state = HeldOut(rows, tokenizer, unwrapped(model).config), processes()
    held_out.check_padding(model)
    own = set(list(dict.fromkeys(held_out.prompts))[state.process_index :: state.num_processes])
    ids = [name for name, prompt in zip(held_out.ids, held_out.prompts, strict=True) if prompt in own]
    items: list[Item] = []
    with Progress(len(ids), "lists", state.is_main_process) as progress:
        for item in held_out.ask(model, ids, batch_size):
            items.append(item)
            progress.add(1)
    items = sorted(gather_object(items), key=lambda item: int(item.id))
    return {
        **held_out.measures(held_out.counted(items)).measure(seed),
        **held_out.details(items),
        "items": [_plain(item) for item in items],
    }


def _plain(item: Item) -> dict[str, Any]:
    tau = {"tau": item.scores["kendall_tau"]} if "kendall_tau" in item.scores else {}
    return {"row": int(item.id), "prompt": item.cluster, **item.details, **tau}


def show(results: Results) -> None:
    """The headline figures as a table, with what was left out and what the length correlation says."""
    console, record, settings = Console(), record_of(results), results.settings
    table = Table.grid(padding=(0, 2))
    for name, (english, chinese, form) in HEADLINES[record["kind"]].items():
        interval = record["intervals"][name]
        bounds = f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
        table.add_row(f"{english} {chinese}", f"{record['scores'][name]:{form}}", Text(bounds))
    title = f"{settings.model} · {settings.data} ({settings.options['split']})"
    console.print(f"{title} · {told(record['n'])}", soft_wrap=True)
    console.print(table)
    ceiling = record["ceiling"]
    if ceiling and ceiling["of_ceiling"] is not None:
        console.print(
            f"Labelers agree on {ceiling['agreement']:.1%} of their pairs: ceiling {ceiling['ceiling']:.1%}, of which "
            f"{ceiling['of_ceiling']:.1%} is reached. 標註者一致性的上限與達成比例",
            soft_wrap=True,
        )
    console.print("\n".join(length_sentence(record)), soft_wrap=True)
    if not results.reportable:
        console.print("--limit was given: not a result to report. 只評了一部分，不可當作正式結果。", soft_wrap=True)
