"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306) of thumbs, on TRL's trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import trl
from datasets import Dataset
from torch import Tensor

from rlhf_kit.errors import UserError
from rlhf_kit.methods.answers import THUMB, answer_rows, encode_thumbs
from rlhf_kit.methods.config import OF_KTO, SYNCED, KTOConfig
from rlhf_kit.methods.preference import PreferenceMixin

MOST = 4 / 3  # good to bad, each kind by its weight times its count (section 4.2, eq. 8: between 1 and 4/3)


class KTOTrainer(PreferenceMixin, trl.KTOTrainer):
    """Train a causal LM on answers that are good or bad, each by itself.

    The KL that the loss takes off is estimated on answers put to the prompts of others: within a batch each prompt
    gets the answer of the row before it. TRL keeps the order of the rows, so they are shuffled once, by the seed: the
    answers of one ranking stand next to one another otherwise.

    Args:
        model: hub id, folder, model or peft model.
        args: `KTOConfig`; the weights of good and bad answers that it leaves open follow from how many there are
            (`balance`). Options that contradict the above are refused.
        train_dataset, eval_dataset: thumbs, rankings or pairs as a file has them, a data set or a list. Of a ranking
            the answers before the middle are good, those behind it bad. An answer that does not fit `max_length` (the
            context at most) with its prompt is left out, and counted in `data_counts`.
        processing_class: the tokenizer; gets the plain-text chat template if it has none and the data are messages.
        peft_config: LoRA; the reference is then the model with its adapters switched off.
        ref_model: the policy to stay near; None for a frozen copy of `model` as handed over.

    Raises:
        UserError: for a refused option, or when all answers are good, or all bad.
    """

    config_class, refused, conditional = KTOConfig, OF_KTO, SYNCED
    encode, columns = encode_thumbs, {*THUMB}

    def prepared(self, rows: Dataset, args: KTOConfig) -> Dataset:
        """The rows in another order, and in `args` the weights of good and bad answers."""
        counts = counts_of(rows)
        if args.desirable_weight is None and args.undesirable_weight is None:
            args.desirable_weight, args.undesirable_weight = balance(*counts)
        for name in ("desirable_weight", "undesirable_weight"):
            setattr(args, name, 1.0 if getattr(args, name) is None else getattr(args, name))
        return rows.shuffle(seed=args.seed, keep_in_memory=True) if len(rows) > 1 else rows

    @staticmethod
    def check_rows(rows: Dataset) -> None:
        """Raise UserError where all answers are good, or all bad."""
        counts_of(rows)

    @staticmethod
    def collator(pad_token_id: int) -> Callable[[list[dict]], dict[str, Tensor]]:
        """Makes a batch of thumbs."""
        return partial(batch_of_thumbs, pad_token_id=pad_token_id)

    @staticmethod
    def texts(row: dict) -> list[list[int]]:
        """Of a thumb: prompt and answer."""
        return [row["prompt_ids"] + row["completion_ids"]]


def counts_of(rows: Dataset) -> tuple[int, int]:
    """How many answers are good and how many bad. Raises UserError where either is none."""
    good = sum(rows["label"])
    bad = len(rows) - good
    if not good or not bad:
        raise UserError(
            f"All {len(rows)} answers are {'good' if good else 'bad'}; KTO learns from good and bad ones. Give "
            "thumbs of both kinds, or train on good answers alone with `rlhf-kit sft`."
        )
    return good, bad


def balance(good: int, bad: int) -> tuple[float, float]:
    """The weights of good and bad answers nearest to 1 and 1 that keep the good ones together as heavy as the bad, or
    heavier by at most a third.

    Source: Ethayarajh et al. 2024, section 4.2, eq. 8.

    >>> balance(100, 100), balance(100, 200), balance(300, 100)
    ((1.0, 1.0), (2.0, 1.0), (1.0, 2.25))
    """
    ratio = good / bad
    return max(1.0, 1 / ratio), max(1.0, ratio / MOST)


def batch_of_thumbs(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """label (B,) of the rows (B, T); and the same prompts, each with the answer of the row before it."""
    prompts, answers = ([row[name] for row in rows] for name in ("prompt_ids", "completion_ids"))
    others = answer_rows(prompts, [answers[-1], *answers[:-1]], pad_token_id)
    batch = {"label": torch.tensor([row["label"] for row in rows])} | answer_rows(prompts, answers, pad_token_id)
    return batch | {f"KL_{name}": tensor for name, tensor in others.items()}
