"""Work on many rows, divided among processes."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlhf_kit.data.rows import AT_ONCE
from rlhf_kit.errors import UserError
from rlhf_kit.references import imported

AT_MOST = 8  # processes, where nobody says how many: more wait for the one that writes
logger = logging.getLogger(__name__)


def workers_for(asked: int | None, is_large: bool) -> int:
    """Processes among which the rows are divided: those asked for, else of large data one a processor, `AT_MOST` in
    all; 0 for this process alone. They are forked, which is safe on Linux alone."""
    if sys.platform != "linux":
        if asked and asked > 1:
            logger.warning("dataset_num_proc=%d: on this system one process tokenizes.", asked)
        return 0
    count = asked or (min(len(os.sched_getaffinity(0)), AT_MOST) if is_large else 0)
    return count if count > 1 else 0


def by_parts(make: Callable[[Any], Any], rows: Sequence, workers: int) -> Iterator[Any]:
    """`make` of each `AT_ONCE` of the rows, as `in_order`."""

    def part(number: int) -> Any:
        return make(rows[number * AT_ONCE : (number + 1) * AT_ONCE])

    return in_order(part, math.ceil(len(rows) / AT_ONCE), workers)


def in_order(make: Callable[[int], Any], count: int, workers: int) -> Iterator[Any]:
    """`make(0)`, `make(1)` and so on, `count` of them, each made by one of `workers` processes; 0: by this one.

    `make` sees all that there is now, and what it changes nobody else sees.

    Raises:
        UserError: what `make` does; and where the system ends one of the processes.
    """
    if not workers:
        yield from map(make, range(count))
        return
    # Of torch's loader: the order, a bound on what waits, and no process left behind where one of them dies.
    loader = imported("torch.utils.data:DataLoader")(
        _Parts(make, count),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(workers, count),
        worker_init_fn=_begin,
        generator=imported("torch:Generator")(),  # else it draws a number of this process's own
        multiprocessing_context="fork",
    )
    try:
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"One of {loader.num_workers} processes that tokenize was ended by the system, most often because the "
            "memory is full. Give fewer (--dataset_num_proc 1), or make room."
        ) from error


def _as_it_is(made: Any) -> Any:
    return made


def _begin(_: int) -> None:
    """A worker ends as its parent says, who hears Ctrl-C as well, and at once where it is told itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # looking through all objects would write into their pages, which are its parent's until then


class _Parts(Sequence):
    """What `make` makes, or the UserError that it raises: a loader would put a traceback into its text."""

    def __init__(self, make: Callable[[int], Any], count: int):
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except UserError as error:
            return error
