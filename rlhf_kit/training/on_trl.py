"""What the kit's trainers on TRL's have in common."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from rlhf_kit.training.trainer import TrainerMixin


class OnTRL(TrainerMixin):
    """Stands before TRL's trainer among the bases."""

    def rows_of(self, dataset: Dataset | list) -> Dataset:
        """What the trainer reads of rows to evaluate on, as a user has them."""
        raise NotImplementedError

    def evaluate(self, eval_dataset: Any = None, **options: Any) -> dict[str, float]:
        """Evaluate on `eval_dataset` (rows as at construction) or on the trainer's own."""
        if isinstance(eval_dataset, Dataset | list):
            eval_dataset = self.rows_of(eval_dataset)
        return super().evaluate(eval_dataset, **options)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Only for the hub: TRL's card calls a model from a folder "a fine-tuned version of None"."""
        if self.args.push_to_hub:
            super().create_model_card(*args, **options)
