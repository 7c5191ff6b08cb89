"""Emulated hosts: rows as ranks emit them, through the product's own shippers and senders."""

from __future__ import annotations

from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloudshift_lab.agent.rows import FLUSH_EVERY_S, ConductorPost, RowShipper
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import StepReport
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.telemetry.batch import decode
from cloudshift_lab.telemetry.spool import Sender

Keys = npt.NDArray[np.int64]
"""Rows by what tells them apart, shape [rows, 2]: rank, step."""
_LAST_ROWS_LIMIT_S = 90.0


class Emission(NamedTuple):
    """What is emitted: ``hz`` steps a second of each rank from ``first_step`` on.

    ``bucket`` is where every second host spools what the conductor does not take, as if it alone
    could reach its bucket; the others keep it in memory. Empty: all keep it.
    """

    job: JobSpec
    num_hosts: int
    ranks_per_host: int
    hz: float
    first_step: int = 0
    bucket: str = ""


class Emitted(NamedTuple):
    """The clients' own record.

    ``rows`` is how many were emitted, ``dropped`` how many of them were given up by the senders,
    ``acknowledged`` those that the collector said it has; ``late_s``: how far emission fell behind.
    """

    rows: int
    dropped: int
    acknowledged: Keys
    last_step: int
    late_s: float


class _Host:
    """One machine's ranks with the sender they share; notes each batch that was acknowledged."""

    def __init__(self, emission: Emission, number: int) -> None:
        self._post = ConductorPost(Path(emission.job.home), emission.job.run_id)
        self._acknowledged: list[bytes] = []
        store = open_store(emission.bucket) if emission.bucket and number % 2 else None
        self.sender = Sender(
            self._deliver, store, emission.job.run_id, generation=1, nonce=f"host{number}"
        )
        self.shipper = RowShipper(self.sender, emission.job)
        first = number * emission.ranks_per_host
        self._ranks = range(first, first + emission.ranks_per_host)
        self._step_s = 1 / emission.hz

    def step(self, step: int) -> int:
        """All its ranks end a step; how many rows that gives."""
        at = REAL_WORLD.now()
        sections = {"forward": self._step_s * 0.4, "backward": self._step_s * 0.5}
        self.shipper.add(
            [
                StepReport(
                    rank=rank, step=step, ts=at, loss=5.0 / (1 + step), tokens=4096,
                    step_s=self._step_s, sections=sections,
                )
                for rank in self._ranks
            ]
        )  # fmt: skip
        return len(self._ranks)

    def acknowledged(self) -> Keys:
        """The rows of every batch whose receipt was confirmed."""
        tables = [decode("step", data) for data in self._acknowledged]
        keys = [np.stack([t["rank"].to_numpy(), t["step"].to_numpy()], axis=1) for t in tables]
        return np.concatenate([np.empty((0, 2), np.int64), *keys])

    def _deliver(self, batch: str, table: str, data: bytes) -> None:
        self._post(batch, table, data)
        self._acknowledged.append(data)


def emit(emission: Emission, stop: Event, answer: Connection) -> None:
    """A process: emit until told to stop, deliver the rest, answer with what was emitted."""
    hosts = []
    for number in range(emission.num_hosts):
        hosts.append(_Host(emission, number))
        REAL_WORLD.sleep(FLUSH_EVERY_S / emission.num_hosts)  # they do not flush in step
    began, step, rows, late_s = REAL_WORLD.monotonic(), emission.first_step, 0, 0.0
    while not stop.is_set():
        due = began + (step - emission.first_step) / emission.hz
        late_s = max(late_s, REAL_WORLD.monotonic() - due)
        REAL_WORLD.sleep(max(0.0, due - REAL_WORLD.monotonic()))
        rows += sum(host.step(step) for host in hosts)
        step += 1
    deadline = REAL_WORLD.monotonic() + _LAST_ROWS_LIMIT_S
    while any(host.sender.num_pending for host in hosts) and REAL_WORLD.monotonic() < deadline:
        REAL_WORLD.sleep(FLUSH_EVERY_S)
    dropped = sum(host.sender.num_dropped + host.sender.num_pending for host in hosts)
    found = np.concatenate([host.acknowledged() for host in hosts])
    answer.send(Emitted(rows, dropped, found, step - 1, late_s))
    answer.close()
