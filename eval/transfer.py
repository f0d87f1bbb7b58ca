"""`accelerate launch eval/transfer.py ...`: `rlhf-kit eval transfer` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "transfer")
