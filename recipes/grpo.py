"""`accelerate launch recipes/grpo.py ...`: `rlhf-kit grpo` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("grpo")
