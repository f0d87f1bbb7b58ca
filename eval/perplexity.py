"""`accelerate launch eval/perplexity.py ...`: `rlhf-kit eval perplexity` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "perplexity")
