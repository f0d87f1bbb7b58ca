"""`python -m rlhf_kit`: the command `rlhf-kit`, for shells that do not find it."""

import sys

from rlhf_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
