"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300), on TRL's trainer."""

from __future__ import annotations

import trl

from rlhf_kit.methods.online import OnlineMixin
from rlhf_kit.methods.online_config import OF_GRPO, ONLY_GRPO, GRPOConfig


class GRPOTrainer(OnlineMixin, trl.GRPOTrainer):
    """Train a causal LM against rewards: each completion's reward against those of all completions to its prompt, in
    units of their spread; the KL is a part of the loss.

    Args: as for `RLOOTrainer`.
    """

    config_class, refused, conditional = GRPOConfig, OF_GRPO, ONLY_GRPO
