"""`accelerate launch recipes/dpo.py ...`: `rlhf-kit dpo` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("dpo")
