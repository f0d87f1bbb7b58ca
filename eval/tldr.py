"""`accelerate launch eval/tldr.py ...`: `rlhf-kit eval tldr` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "tldr")
