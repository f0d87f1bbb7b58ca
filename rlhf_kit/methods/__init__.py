"""Other ways than PPO from preferences or rewards to a policy: DPO and KTO, each on TRL's own trainer."""
