"""`accelerate launch recipes/sft.py ...`: `rlhf-kit sft` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("sft")
