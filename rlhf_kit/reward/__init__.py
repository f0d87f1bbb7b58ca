"""Stage 2, the reward model: from ranked answers, pairs or thumbs. Read `trainer.py` first."""

from rlhf_kit.reward.calibration import Answers, choose_prompts, demonstrated_answers, policy_answers, recenter
from rlhf_kit.reward.config import RewardConfig
from rlhf_kit.reward.data import encode_comparisons
from rlhf_kit.reward.trainer import RewardTrainer

__all__ = ["RewardConfig", "RewardTrainer", "encode_comparisons"]
__all__ += ["Answers", "choose_prompts", "demonstrated_answers", "policy_answers", "recenter"]
