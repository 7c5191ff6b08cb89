"""What telemetry needs done again and again: rolling up, forgetting, filling the archive."""

from __future__ import annotations

import threading

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.world import World
from cloudshift_lab.telemetry.store import TelemetryStore

ROLL_EVERY_S = 10.0
TIDY_EVERY_S = 3600.0


class Upkeep:
    """Keeps one telemetry store in order, in a thread of its own.

    ``last_error`` is why the newest round failed, None after one that went well: what was not done
    is done in the next one.

    Args:
        store: What is kept.
        world: Clock.
    """

    def __init__(self, store: TelemetryStore, world: World) -> None:
        self._store = store
        self._world = world
        self._tidied_at = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="upkeep", daemon=True)
        self.last_error: str | None = None

    def start(self) -> None:
        """Begin, with a first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the round that is under way, and begin none."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def round(self) -> None:
        """Roll up; once an hour also tidy. First take back what a lost database held.

        Raises:
            CloudshiftError: The database or the archive failed; the next round makes up for it.
        """
        if self._store.lacks_archive:
            self._store.take_back_archive()
        self._store.roll(self._world.now())
        if self._world.monotonic() - self._tidied_at >= TIDY_EVERY_S:
            self._store.archive(self._world.now())
            self._store.forget(self._world.now())
            self._tidied_at = self._world.monotonic()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.round()
                self.last_error = None
            except CloudshiftError as error:
                self.last_error = error.message
            self._stop.wait(ROLL_EVERY_S)
