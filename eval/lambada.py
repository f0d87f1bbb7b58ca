"""`accelerate launch eval/lambada.py ...`: `rlhf-kit eval lambada` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "lambada")
