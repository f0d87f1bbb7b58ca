"""What this process has freed: a training step's is kept for the next one, another's goes back to the system.

glibc gives every large block back to the system when it is freed, and the next step faults it in page by page, filled
with zeros: on a CPU that took an eighth of an optimizer step of GPT-2 small's shape.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = 2**31 - 1
# Bytes of a block above which glibc, left to itself, gives it back at once; older ones take no more.
LARGEST = 32 * 2**20
SET_BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def kept_memory(applies: bool = True) -> Iterator[None]:
    """Within, what this process frees stays its own. Given back at the end, and first what it has freed before. Only
    with glibc, and where it `applies` and no environment variable says otherwise."""
    libc = _glibc() if applies else None
    if libc is None:
        yield
        return
    libc.malloc_trim(0)
    if not libc.mallopt(MMAP_THRESHOLD, NEVER):  # an older glibc
        libc.mallopt(MMAP_THRESHOLD, LARGEST)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(MMAP_THRESHOLD, LARGEST)
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST)
        libc.malloc_trim(0)


@contextmanager
def apart(applies: bool = True) -> Iterator[None]:
    """Around work of other blocks than what goes before and after it: what is free is given back on both sides, so
    that their peaks do not add up. It costs a page fault for every page that is used again."""
    give_back(applies)
    yield
    give_back(applies)


def give_back(applies: bool = True) -> None:
    """What is free goes back to the system, at once. Only with glibc, as above."""
    libc = _glibc() if applies else None
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SET_BY_HAND):
        return None
    return ctypes.CDLL(None)
