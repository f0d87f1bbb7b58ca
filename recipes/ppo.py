"""`accelerate launch recipes/ppo.py ...`: `rlhf-kit ppo` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("ppo")
