"""Followers: kernel threads that keep a live widget and its saved output up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cloudshift_lab.core.errors import CloudshiftError

V = TypeVar("V")


class Follower(Generic[V]):
    """Fetches a view each ``interval_s`` until it has ended, is stopped, or the kernel ends.

    It never prints: output of a thread lands in whatever cell is running.

    Args:
        fetch: The newest view; its ``CloudshiftError`` is passed to ``lost``, then tried again.
        seen: Called with every view, the last one included.
        ended: Whether a view is the last one.
    """

    def __init__(
        self,
        fetch: Callable[[], V],
        seen: Callable[[V], None],
        ended: Callable[[V], bool],
        *,
        lost: Callable[[str], None],
        interval_s: float = 1.0,
    ) -> None:
        self._fetch, self._seen, self._ended, self._lost = fetch, seen, ended, lost
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloudshift-follower", daemon=True)

    def start(self) -> None:
        """Begin, in a daemon thread."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; returns at once."""
        self._stop.set()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                view = self._fetch()
            except CloudshiftError as error:
                self._lost(error.message)
            else:
                self._seen(view)
                if self._ended(view):
                    return
            self._stop.wait(self._interval_s)
