"""The status object: what this agent says of itself, written on news or when it is time."""

from __future__ import annotations

import math

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.orders import AgentStatus, status_key
from cloudshift_lab.core.run import JobSpec, SaveStats
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.store import Store

STATUS_EVERY_S = 2.0
PROGRESS_EVERY_S = 0.5
WATCHED_EVERY_S = 0.25
WATCHED_FOR_S = 900.0
_MAX_WARNINGS = 5


class Board:
    """Keeps the newest status and publishes it.

    Args:
        store: Where the status object lies.
        job: Whose status.
        world: Clock.
    """

    def __init__(self, store: Store, job: JobSpec, world: World) -> None:
        self._store = store
        self._world = world
        self._published: AgentStatus | None = None
        self._published_at = float("-inf")
        self._watched_until = float("-inf")
        self._noted: dict[str, str] = {}
        self.status = AgentStatus(
            run_id=job.run_id, generation=job.generation, state="starting", beat=0, at=world.now(),
            saves=SaveStats(keep=job.keep),
        )  # fmt: skip

    def update(self, **changes: object) -> None:
        """Replace fields of the status; published with the next ``publish``."""
        self.status = msgspec.structs.replace(self.status, **changes)

    def update_saves(self, **changes: object) -> None:
        """Replace figures about checkpoints."""
        self.update(saves=msgspec.structs.replace(self.status.saves, **changes))

    def show_losses(self, losses: tuple[tuple[int, float], ...]) -> None:
        """Replace the newest losses; JSON has no word for what is not a finite number."""
        if losses:
            self.update(losses=tuple(told for told in losses if math.isfinite(told[1])))

    def warn(self, message: str) -> None:
        """Keep a warning among the newest few, each once."""
        kept = tuple(line for line in self.status.warnings if line != message)
        self.update(warnings=(*kept, message)[-_MAX_WARNINGS:])

    def note(self, topic: str, message: str) -> None:
        """Keep one warning per topic: a newer one, with other numbers, replaces it."""
        former = self._noted.get(topic)
        if message == former:
            return
        self._noted[topic] = message
        self.update(warnings=tuple(line for line in self.status.warnings if line != former))
        self.warn(message)

    def publish(self) -> None:
        """Write the status if it has news that cannot wait, or the last one is old enough.

        News of an order under way wait ``PROGRESS_EVERY_S``, those of a run whose losses a standby
        compares ``WATCHED_EVERY_S``, all others ``STATUS_EVERY_S``.

        A store that refuses is a warning in the next status; it must not stop the training.
        """
        now = self._world.monotonic()
        if not self._has_news() and now - self._published_at < self._every_s(now):
            return
        self.update(beat=self.status.beat + 1, at=self._world.now())
        self._published_at = now
        status = self.status
        try:
            self._store.put(status_key(status.run_id, status.generation), to_json(status))
        except CloudshiftError as error:
            self.warn(error.message)
        else:
            self._published = status

    def expect_watchers(self) -> None:
        """A move is on: for some time others look at every step that is done here."""
        self._watched_until = self._world.monotonic() + WATCHED_FOR_S

    def _every_s(self, now: float) -> float:
        before = self._published
        if before is None or now - self._published_at < WATCHED_EVERY_S:
            return STATUS_EVERY_S
        if now < self._watched_until and before.step != self.status.step:
            return WATCHED_EVERY_S
        return PROGRESS_EVERY_S if before.results != self.status.results else STATUS_EVERY_S

    def is_told(self) -> bool:
        """Whether the world knows the present state."""
        return self._published is not None and self._published.state == self.status.state

    def _has_news(self) -> bool:
        return self._published is None or _gist(self._published) != _gist(self.status)


def _gist(status: AgentStatus) -> tuple[object, ...]:
    """The fields whose change cannot wait."""
    results = {order: result.state for order, result in status.results.items()}
    return (
        status.state, results, status.committed_step, status.first_step_at, status.error,
        status.notice_until,
    )  # fmt: skip
