"""`accelerate launch eval/mc.py ...`: `rlhf-kit eval mc` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "mc")
