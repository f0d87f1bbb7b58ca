"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) of ranked answers, on TRL's trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import trl
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf_kit.data.packing import IGNORED
from rlhf_kit.methods.answers import LIST, answer_rows, encode_lists
from rlhf_kit.methods.config import OF_DPO, ONLY_DPO, DPOConfig
from rlhf_kit.methods.preference import PreferenceMixin
from rlhf_kit.training.lists import MeanOverLists

ROWS = ("input_ids", "attention_mask", "completion_mask")


class DPOTrainer(MeanOverLists, PreferenceMixin, trl.DPOTrainer):
    """Train a causal LM on the order of answers to each prompt: every better one against every worse one.

    The loss of a list is TRL's, the mean over its strictly ordered pairs; that of a step is the mean over its lists,
    so that each list weighs once (or its `weight`), however many pairs it has. Ties are no pairs. Each answer is read
    once by the policy and once by the reference, however many pairs it is in: what TRL's loss gets, list after list,
    is rows of one output.

    Args:
        model: hub id, folder, model or peft model.
        args: `DPOConfig`; a batch size counts lists. Options that contradict the above are refused.
        train_dataset, eval_dataset: rankings or pairs as a file has them, a data set or a list. An answer that does
            not fit `max_length` (the context at most) with its prompt is left out, and counted in `data_counts`.
        processing_class: the tokenizer; gets the plain-text chat template if it has none and the data are messages.
        peft_config: LoRA; the reference is then the model with its adapters switched off.
        ref_model: the policy to stay near; None for a frozen copy of `model` as handed over.

    Raises:
        UserError: for a refused option, thumbs, or when no list is left.
    """

    config_class, refused, conditional = DPOConfig, OF_DPO, ONLY_DPO
    encode, columns = encode_lists, {*LIST}

    @staticmethod
    def collator(pad_token_id: int) -> Callable[[list[dict]], dict[str, Tensor]]:
        """Makes a batch of lists."""
        return partial(batch_of_lists, pad_token_id=pad_token_id)

    @staticmethod
    def texts(row: dict) -> list[list[int]]:
        """Of a list: prompt and answer, of each answer."""
        return [row["prompt_ids"] + answer for answer in row["answer_ids"]]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Weighted mean of TRL's loss over the lists; their share in a whole step of `num_items_in_batch`."""
        rows = {name: inputs[name] for name in ROWS}
        labels = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, IGNORED)
        read = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"], "use_cache": False}
        if self.aux_loss_enabled:
            read["output_router_logits"] = True
        output = model(**read, labels=labels, fused_lm_head=True)
        reference = torch.cat(self.compute_ref_log_probs(self.ref_model or self.model, rows))  # (N,)
        losses = []
        with self._handed_over():
            for pairs in inputs["pairs"].split(inputs["sizes"].tolist()):
                better, worse = pairs.unbind(1)
                places = torch.cat([better, worse])
                batch = {name: tensor[places] for name, tensor in rows.items()}
                batch |= {"ref_chosen_logps": reference[better], "ref_rejected_logps": reference[worse]}
                losses.append(super().compute_loss(partial(_rows_of, output, places), batch))
        loss = self.mean_over_lists(torch.stack(losses), inputs["weights"], num_items_in_batch)
        return (loss, output) if return_outputs else loss

    @contextmanager
    def _handed_over(self) -> Iterator[None]:
        """Within, TRL takes the reference's log-probs from the batch, which is one list, and gathers means of it."""
        accelerator, self.accelerator = self.accelerator, MeansGathered(self.accelerator)
        self.precompute_ref_logps = True
        try:
            yield
        finally:
            self.accelerator, self.precompute_ref_logps = accelerator, False


class MeansGathered:
    """An accelerator that gathers the mean of what each process has: their lists differ in their numbers of pairs, of
    which TRL logs the mean. All else is the accelerator's."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)

    def gather(self, values: Tensor) -> Tensor:
        """(P,) -> (processes,)."""
        return self.accelerator.gather(values.mean())


def batch_of_lists(lists: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """weights (G,) of the lists; the rows (N, T) of all their answers; and the `pairs` (P, 2) of a better and a worse
    row, those of a list side by side, `sizes` (G,) of them."""
    prompts = [one["prompt_ids"] for one in lists for _ in one["answer_ids"]]
    answers = [answer for one in lists for answer in one["answer_ids"]]
    pairs, first = [], 0
    for one in lists:
        pairs.append(torch.tensor([one["better"], one["worse"]]).T + first)
        first += len(one["answer_ids"])
    batch = {"weights": torch.tensor([one["weight"] for one in lists], dtype=torch.float32)}
    batch |= {"pairs": torch.cat(pairs), "sizes": torch.tensor([len(one) for one in pairs])}
    return batch | answer_rows(prompts, answers, pad_token_id)


def _rows_of(output: Any, places: Tensor, **inputs: Any) -> Any:
    """What the model would give for these rows, which it has read already."""
    picked = {name: x[places] if isinstance(x, Tensor) and x.dim() == 2 else x for name, x in output.items()}
    return type(output)(**picked)
