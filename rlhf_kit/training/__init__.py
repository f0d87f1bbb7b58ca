"""What all trainers of the kit add to transformers' own."""

from rlhf_kit.training.trainer import Trainer, TrainerMixin

__all__ = ["Trainer", "TrainerMixin"]
