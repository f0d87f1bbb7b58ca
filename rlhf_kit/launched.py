"""The rank of this process among those a launcher started, from the environment: known before torch is imported."""

from __future__ import annotations

import os

# As accelerate reads torchrun's, its own and MPI's (`get_cpu_distributed_information`).
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "LOCAL_RANK")
TRACES = ("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK")  # that a launcher of a single process leaves
ACCELERATE = "RLHF_KIT_ACCELERATE"  # what `--accelerate` named, in the processes that it started


def process_count() -> int:
    return max(_number(COUNTS, 1), 1)


def is_started() -> bool:
    """Whether a launcher started this process: accelerate's, torchrun's or MPI's."""
    return process_count() > 1 or any(name in os.environ for name in (ACCELERATE, *TRACES))


def accelerated() -> str | None:
    """What `--accelerate` named, where it started this process."""
    return os.environ.get(ACCELERATE)


def is_main_process() -> bool:
    """Whether this is the process that speaks: the first of all machines', or the only one."""
    return process_count() == 1 or _number(RANKS, 0) == 0


def _number(names: tuple[str, ...], default: int) -> int:
    """The first of these variables that is a number; some are -1 or nothing where no launcher set them."""
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), default)
