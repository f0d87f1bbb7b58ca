"""Other ways than PPO from preferences or rewards to a policy: DPO, KTO, RLOO and GRPO, each on TRL's own trainer."""
