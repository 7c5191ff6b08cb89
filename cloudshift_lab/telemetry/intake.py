"""Batches of many senders, stored together: one commit for all that wait, an answer for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pyarrow as pa

from cloudshift_lab.core.errors import CloudshiftError, Unavailable


@dataclass(frozen=True)
class Offered:
    """A checked batch that waits to be stored; ``stored`` ends once it is durable.

    Its result is False where a batch of this id was stored before.
    """

    batch_id: str
    table: str
    rows: pa.Table
    stored: Future[bool] = field(default_factory=Future)


class Intake:
    """Gathers offered batches for a moment and hands them on as one group, in a thread of its own.

    A group that fails is tried batch by batch, so that none fails for another one's sake.

    Args:
        store: Stores a group durably, all of it or nothing; for each batch whether it was new.
        gather_s: How long the first of a group waits for others, seconds.
    """

    def __init__(
        self, store: Callable[[Sequence[Offered]], Sequence[bool]], *, gather_s: float
    ) -> None:
        self._store = store
        self._gather_s = gather_s
        self._lock = threading.Condition()
        self._waiting: list[Offered] = []
        self._is_urgent = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="intake", daemon=True)
        self._thread.start()

    def offer(self, batch: Offered, *, at_once: bool) -> Future[bool]:
        """Queue a batch; ``at_once`` sends its group off without waiting for others.

        Raises:
            Unavailable: Nothing is taken in any more.
        """
        with self._lock:
            if self._is_closed:
                raise Unavailable("telemetry is being closed; send the batch again later")
            batch.stored.set_running_or_notify_cancel()
            self._waiting.append(batch)
            self._is_urgent = self._is_urgent or at_once
            self._lock.notify_all()
        return batch.stored

    def close(self) -> None:
        """Store what waits, then stop."""
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        self._thread.join()

    def _work(self) -> None:
        try:
            while group := self._gather():
                self._settle(group)
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Leave nobody waiting for an answer that will not come."""
        with self._lock:
            self._is_closed = True
            for batch in self._waiting:
                batch.stored.set_exception(
                    Unavailable("telemetry takes nothing in any more; start the conductor again")
                )
            self._waiting = []

    def _gather(self) -> list[Offered]:
        """The next group; empty once closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._is_closed)
            self._lock.wait_for(lambda: self._is_urgent or self._is_closed, self._gather_s)
            group, self._waiting = self._waiting, []
            self._is_urgent = False
            return group

    def _settle(self, group: Sequence[Offered]) -> None:
        try:
            answers = self._store(group)
        except (CloudshiftError, pa.ArrowException, ValueError) as error:
            if len(group) == 1:
                group[0].stored.set_exception(error)
                return
            for batch in group:
                self._settle([batch])
        except BaseException as error:
            for batch in group:
                batch.stored.set_exception(error)
            raise
        else:
            for batch, is_new in zip(group, answers, strict=True):
                batch.stored.set_result(is_new)
