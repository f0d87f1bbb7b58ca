"""`accelerate launch recipes/kto.py ...`: `rlhf-kit kto` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("kto")
