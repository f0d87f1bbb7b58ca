"""What every trainer of the kit adds to transformers' own."""

from rlhf_kit.training.trainer import Trainer, TrainerMixin

__all__ = ["Trainer", "TrainerMixin"]
