"""`accelerate launch recipes/reward.py ...`: `rlhf-kit reward` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("reward")
