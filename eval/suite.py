"""`accelerate launch eval/suite.py ...`: `rlhf-kit eval suite` on every process."""

from rlhf_kit.cli.launch import launch

if __name__ == "__main__":
    launch("eval", "suite")
