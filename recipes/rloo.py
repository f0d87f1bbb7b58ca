"""`accelerate launch recipes/rloo.py ...`: `rlhf-kit rloo` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("rloo")
