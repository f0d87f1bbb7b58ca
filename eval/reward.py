"""`accelerate launch eval/reward.py ...`: `rlhf-kit eval reward` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "reward")
