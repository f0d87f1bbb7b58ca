"""Proximal policy optimisation against reward models and Python functions."""

from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
