"""A wait that speaks: silent for a second, then what is being waited for and how long already."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from cloudshift_lab.core.money import format_duration
from cloudshift_lab.core.world import REAL_WORLD, World

SILENT_S = 1.0
EVERY_S = 0.5


class Waiting:
    """Context around a call that may take long.

    Args:
        what: What is being done: ``checking the store of aws-sim``.
        show: Called every half second with the newest line, from a thread of its own, and with
            None at the end if a line was shown. It must only replace what it showed before.
        world: Clock.
    """

    def __init__(
        self, what: str, show: Callable[[str | None], None], *, world: World = REAL_WORLD
    ) -> None:
        self._what = what
        self._show = show
        self._world = world
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="cloudshift-waiting", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _speak(self) -> None:
        began = self._world.monotonic()
        if self._ended.wait(SILENT_S):
            return
        while True:
            passed = format_duration(self._world.monotonic() - began)
            self._show(f"{self._what} … {passed}")
            if self._ended.wait(EVERY_S):
                break
        self._show(None)
