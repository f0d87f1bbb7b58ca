"""`accelerate launch eval/squad.py ...`: `rlhf-kit eval squad` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "squad")
