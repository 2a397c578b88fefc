"""Processes and signals, as the worker, its pool processes and the commands all handle them."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from worker.processes import guardian
from worker.processes.guardian import become_reaper, die_with_parent, kill_below

__all__ = [
    "GUARDIAN",
    "Stop",
    "become_reaper",
    "die_with_parent",
    "end_at_once",
    "guard_forks",
    "hold_signals",
    "kill_below",
    "resident_mb",
    "stop_on_signals",
]

#: The command line of a guardian, up to its arguments: no site-packages, nothing from the environment.
GUARDIAN = [sys.executable, "-I", "-S", guardian.__file__]

#: Signals that go to a whole group, as a terminal's Ctrl-C.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds between two looks whether a signal has come.
LOOK_S = 0.05


def hold_signals() -> None:
    """In a pool process: take no notice of a group's signals, since the worker decides when its pool ends.

    By a handler rather than ``SIG_IGN``: an ignored signal stays ignored in the programs that a plugin starts, a
    handler is not inherited by them. System calls go on after it (``siginterrupt``).
    """
    for number in GROUP_SIGNALS:
        signal.signal(number, _take_no_notice)
        signal.siginterrupt(number, False)


def guard_forks(leave: Callable[[], None]) -> None:
    """From now on, a fork of this process has Python's own signal handlers again, and then calls ``leave``.

    The signals are blocked meanwhile: one that comes to the fork before it has its handlers must not be lost.
    """
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def in_child() -> None:
        for number in GROUP_SIGNALS:
            if signal.getsignal(number) is _take_no_notice:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        unblock()
        leave()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=in_child)


def end_at_once(code: int) -> NoReturn:
    """End this process without a look at its threads, and at functions that a plugin has registered for its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # a plugin has closed or replaced it
    os._exit(code)


def resident_mb(pid: int) -> float:
    """A process's memory in units of 2**20 bytes; 0 where it is unknown (no Linux, or the process is gone)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() / 2**20


class Stop:
    """Set by a signal handler. Not ``threading.Event``: the wait that is interrupted may hold its lock."""

    def __init__(self) -> None:
        self.in_a_hurry = False  #: a second Ctrl-C
        self._is_set = False

    def set(self, in_a_hurry: bool = False) -> None:
        """From now on it is set."""
        self.in_a_hurry = self.in_a_hurry or in_a_hurry
        self._is_set = True

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def wait(self, timeout_s: float = math.inf) -> bool:
        """Wait until it is set, or the time is over; gives whether it is set."""
        deadline = time.monotonic() + timeout_s
        while not self._is_set and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(left_s, LOOK_S))
        return self._is_set


def stop_on_signals() -> Stop:
    """A flag that SIGTERM and SIGINT set."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.set(number == signal.SIGINT and stop.is_set()))
    return stop


def _take_no_notice(number: int, frame: FrameType | None) -> None:
    """A signal handler that does nothing."""
