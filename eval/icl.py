"""`accelerate launch eval/icl.py ...`: `rlhf-kit eval icl` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "icl")
