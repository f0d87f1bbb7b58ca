"""Pieces of work that are run in processes of their own."""

import os
import signal
import sys

from rlhf_kit.errors import UserError


def double(number: int) -> int:
    sys.stdout.write(f"doubling {number}\n")
    return 2 * number


def hold(megabytes: int) -> int:
    return len(bytearray(os.urandom(1) * megabytes * 2**20))


def refuse() -> None:
    raise UserError("not that")


def crash() -> float:
    return 1 / 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
