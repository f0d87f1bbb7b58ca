"""`accelerate launch eval/coqa.py ...`: `rlhf-kit eval coqa` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "coqa")
