"""Learning from examples in the prompt (Brown et al. 2020)."""
