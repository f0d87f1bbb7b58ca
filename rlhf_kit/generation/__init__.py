"""What a causal LM writes and how likely it finds a text: the loops that PPO, evaluation and the demo share."""
