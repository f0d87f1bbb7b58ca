"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740), on TRL's trainer."""

from __future__ import annotations

import trl

from rlhf_kit.methods.online import OnlineMixin
from rlhf_kit.methods.online_config import OF_SAMPLING, ONLY_RLOO, RLOOConfig


class RLOOTrainer(OnlineMixin, trl.RLOOTrainer):
    """Train a causal LM against rewards: each completion's reward, KL penalty included, against the mean of the others
    to its prompt.

    Args:
        model: hub id, folder, model or peft model.
        reward_funcs: one or a list of hub ids, folders, sequence-classification models with one label, or Python
            functions, as for PPO (`rlhf_kit.ppo.rewards`), which scores alike.
        args: `RLOOConfig`; options that contradict the kit are refused.
        train_dataset, eval_dataset: rows with a `prompt`; all columns go to the functions.
        peft_config: LoRA; the reference is then the model with its adapters switched off.
        ref_model: the policy to stay near; None for a frozen copy of `model` as handed over.
        reward_ensemble, reward_ensemble_std_coef, max_prompt_length: as for PPO.
    """

    config_class, refused, conditional = RLOOConfig, OF_SAMPLING, ONLY_RLOO
