"""`python -m rlhf_kit`: the command `rlhf-kit`, where the shell does not find it."""

import sys

from rlhf_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
