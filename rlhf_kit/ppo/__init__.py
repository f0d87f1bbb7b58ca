"""Proximal policy optimisation against reward models and Python functions."""

from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import Experience, advantages, losses
from rlhf_kit.ppo.rollout import Rollout, sample
from rlhf_kit.ppo.trainer import PPOTrainer

__all__ = ["Experience", "PPOConfig", "PPOTrainer", "Rollout", "advantages", "losses", "sample"]
