"""`accelerate launch recipes/pretrain.py ...`: `rlhf-kit pretrain` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("pretrain")
