"""Generation by a causal LM and the likelihood of a text: the loops that PPO, evaluation and the demo share."""
