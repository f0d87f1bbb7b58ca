"""Ctrl-C: a stop that is asked for, an exception where it is waited for, and none that C sleeps on."""

import os
import pty
import select
import signal
import sys
import time

import pytest

from rlhf_kit.terminal import interrupts
from rlhf_kit.terminal.interrupts import heard, stoppable

PATIENCE = 60
# The signal reaches another thread, so that it wakes nobody: as one does that comes just before readline waits.
ASKING = """
import readline, signal, threading, time
from rlhf_kit.terminal.interrupts import heard

def interrupt():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    with heard():
        input("> ")
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_where_readline_waits_without_a_key():
    process, master = pty.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background of a shell
        os.execv(sys.executable, [sys.executable, "-c", ASKING])
    seen, until = b"", time.monotonic() + PATIENCE
    try:
        while b"heard" not in seen and time.monotonic() < until:
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 4096)
        assert b"heard" in seen, seen
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(master)


def test_the_clock_stops_with_the_wait():
    rings = []
    kept = signal.signal(signal.SIGALRM, lambda number, frame: rings.append(number))
    try:
        with heard():
            assert signal.getitimer(signal.ITIMER_REAL)[1] > 0
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        signal.raise_signal(signal.SIGALRM)
        assert rings == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def interrupting(at: int, seen: list):
    """Numbers; Ctrl-C comes while `at` is made."""
    for number in range(10):
        if number == at:
            signal.raise_signal(signal.SIGINT)
            seen.append("not reached")
        yield number


def test_ctrl_c_ends_a_wait_for_the_next_step_at_once():
    seen = []
    with stoppable() as stop, pytest.raises(KeyboardInterrupt):
        seen.extend(stop.each(interrupting(2, seen)))
    assert stop.is_asked and seen == [0, 1]


def test_elsewhere_the_first_is_no_exception_and_the_second_is():
    seen = []
    with stoppable() as stop:
        for number in stop.each(iter(range(10))):
            seen.append(number)
            if number == 3:
                signal.raise_signal(signal.SIGINT)
                seen.append("in order")
        assert seen == [0, 1, 2, 3, "in order"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_one_that_a_finaliser_swallows_ends_the_steps_too(monkeypatch):
    """Python drops an exception of `__del__`."""

    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def steps():
        for number in range(10):
            if number == 2:
                Dropping()
            yield number

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: dropped.append(fault.exc_type))
    with stoppable() as stop:
        assert list(stop.each(steps())) == [0, 1, 2]
    assert dropped == [KeyboardInterrupt]


def test_a_ctrl_c_as_the_clock_starts_leaves_none_that_runs(monkeypatch):
    """Python would die of its signal on the way out."""
    start, kept = signal.setitimer, signal.getsignal(signal.SIGALRM)

    def interrupted(which, seconds, every=0.0):
        start(which, seconds, every)
        if seconds:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts.signal, "setitimer", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), heard():
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) == kept
    finally:
        start(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
