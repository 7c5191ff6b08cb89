"""One capture on its way from its beginning to its announcement, and the thread that carries it."""

from __future__ import annotations

import contextlib
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

    def carry(self) -> None:
        """Copy, judge and announce; whatever goes wrong, nobody waits for it in vain."""
        try:
            self._copy()
            if not self.is_judged.wait(self.settle_s):
                self.judge()
            self.torn_by = self.torn_by or self._watch.torn_by(self.opened.steady.places)
            if self.torn_by is None and self.failure is None:
                self._arena.announce(self.opened)
        except Exception as error:  # noqa: BLE001 - kept for the training thread, which says it
            self._fail(error)
        finally:
            self.opened.steady.end()
            for event in (self.is_copied, self.is_judged, self.is_done):
                event.set()

    def judge(self) -> None:
        """Decide once whether the copy is of one moment.

        Sound where no operation on the tensors is under way: their counters move at its end.
        """
        with self._lock:
            if not self.is_judged.is_set():
                try:
                    self.torn_by = self._watch.changed()
                except Exception as error:  # noqa: BLE001 - kept, and the step is not announced
                    self._fail(error)
                finally:
                    self.is_judged.set()

    def _copy(self) -> None:
        """Copy what is steady, and wait for what a device still has to do."""
        began = time.perf_counter()
        self.opened.steady.read()
        self.opened.volatile.complete()
        self.opened.steady.complete()
        self.settle_s = SETTLE_S + 4 * (time.perf_counter() - began)
        self.is_copied.set()

    def _fail(self, error: Exception) -> None:
        is_ours = isinstance(error, CloudshiftError | OSError)
        self.failure = str(error) if is_ours else f"{type(error).__name__}: {error}"


def carry(flights: queue.SimpleQueue[Flight | None]) -> None:
    """The copying thread: one capture after the other; it keeps none when it waits."""
    _step_back()
    while (flight := flights.get()) is not None:
        flight.carry()
        del flight


def _step_back() -> None:
    """Let training's threads go first; never a right that this thread lacks."""
    if sys.platform == "linux":  # where a thread has a niceness of its own
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            niceness = max(os.getpriority(os.PRIO_PROCESS, thread), NICENESS)
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
