"""One capture on its way from its beginning to its announcement, and the thread that carries it."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from enum import IntEnum

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.training.arena import Arena, Opened
from cloudshift_lab.training.watching import Watch

SETTLE_S = 2.0
NICENESS = 5


class Lost(IntEnum):
    """What became of a capture. ``FAILED``: no room, for example; the next one may succeed."""

    NOTHING = 0
    FAILED = 1
    TORN = 2


class Flight:
    """One capture from its beginning to its announcement.

    ``torn_by`` names a tensor that changed under the copy, ``failure`` says what else went wrong;
    both are certain once ``is_done``.
    """

    def __init__(self, arena: Arena, opened: Opened, watch: Watch) -> None:
        self.settle_s = SETTLE_S
        self._arena = arena
        self.opened = opened
        self.step = opened.staged.step
        self.torn_by: str | None = None
        self.failure: str | None = None
        self.is_copied = threading.Event()
        self.is_judged = threading.Event()
        self.is_done = threading.Event()
        self._watch = watch
        self._lock = threading.Lock()

    def copy(self) -> None:
        """Copy what is steady, and wait for what a device still has to do."""
        began = time.perf_counter()
        try:
            self.opened.steady.read()
            self.opened.volatile.complete()
            self.opened.steady.complete()
        except (RuntimeError, MemoryError) as error:
            self.failure = str(error)
        finally:
            self.settle_s = SETTLE_S + 4 * (time.perf_counter() - began)
            self.is_copied.set()

    def announce(self) -> None:
        """Say that the step is complete, unless the copy is worth nothing."""
        try:
            if self.torn_by is None and self.failure is None:
                self._arena.announce(self.opened)
        except (CloudshiftError, OSError) as error:
            self.failure = str(error)
        finally:
            self.is_done.set()

    def judge(self) -> None:
        """Decide once whether the copy is of one moment.

        Sound where no operation on the tensors is under way: their counters move at its end.
        """
        with self._lock:
            if not self.is_judged.is_set():
                self.torn_by = self._watch.changed()
                self.is_judged.set()


def carry(flights: queue.SimpleQueue[Flight | None]) -> None:
    """The copying thread: one capture after the other; it keeps none when it waits."""
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    while (flight := flights.get()) is not None:
        flight.copy()
        if not flight.is_judged.wait(flight.settle_s):
            flight.judge()
        flight.announce()
        del flight
