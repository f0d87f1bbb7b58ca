"""Proximal policy optimisation against reward models and Python functions; the formulas are in `ops.py`."""

from rlhf_kit.generation.sampling import Rollout, sample
from rlhf_kit.ppo.best_of_n import BestOfN, best_of_n
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import Experience, advantages, losses
from rlhf_kit.ppo.trainer import PPOTrainer, check_models

__all__ = ["BestOfN", "Experience", "PPOConfig", "PPOTrainer", "Rollout"]
__all__ += ["advantages", "best_of_n", "check_models", "losses", "sample"]
