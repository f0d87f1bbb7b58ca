"""`accelerate launch recipes/mlm.py ...`: `rlhf-kit mlm` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("mlm")
