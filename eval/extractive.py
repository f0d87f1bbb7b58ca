"""`accelerate launch eval/extractive.py ...`: `rlhf-kit eval extractive` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "extractive")
