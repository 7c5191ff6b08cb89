"""People who look: readers that poll the conductor as panels and notebooks do."""

from __future__ import annotations

import io
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bench.collecting import RUN_ID

EVERY_S = 0.25
WINDOW_S = 120
CURVE_EVERY = 4
_MOST_LOOKS = 200
NEWEST = """SELECT rank, max(step) AS step, epoch(arg_max(ts, step)) AS at FROM step
    WHERE run_id = '{run}' AND ts > make_timestamp({since_us}) GROUP BY rank"""
SPREAD = """SELECT rank, avg(step_s) AS mean, quantile_cont(step_s, 0.99) AS p99 FROM step
    WHERE run_id = '{run}' AND ts > make_timestamp({since_us}) GROUP BY rank"""


class Looked(NamedTuple):
    """What the readers met: answers in seconds by question, ages of rows when first seen.

    Rows that were skipped, because a newer one of the rank came with them, are as old as they are.
    """

    answers: dict[str, list[float]]
    ages_s: list[float]


class _Reader:
    """One person's view, refreshed four times a second; the curve once a second."""

    def __init__(self, client: Client, num_ranks: int) -> None:
        self._client = client
        self._seen: npt.NDArray[np.int64] = np.full(num_ranks, -1)
        self.looked = Looked({"newest": [], "curve": [], "spread": []}, [])

    def read(self, stop: Event) -> None:
        """Look until told to stop and something new was seen, but not for ever."""
        number = 0
        while not stop.is_set() or (not self.looked.ages_s and number < _MOST_LOOKS):
            due = REAL_WORLD.monotonic() + EVERY_S
            self._look_newest()
            if number % CURVE_EVERY == 0:
                began = REAL_WORLD.monotonic()
                self._client.series(RUN_ID, points=240)
                self.looked.answers["curve"].append(REAL_WORLD.monotonic() - began)
                self._ask("spread", SPREAD)
            number += 1
            REAL_WORLD.sleep(max(0.0, due - REAL_WORLD.monotonic()))

    def _look_newest(self) -> None:
        table = self._ask("newest", NEWEST)
        ranks, steps = table["rank"].to_numpy(), table["step"].to_numpy()
        news = steps > self._seen[ranks]
        if (self._seen >= 0).all():
            ages = REAL_WORLD.now() - table["at"].to_numpy()[news]
            self.looked.ages_s.extend(float(age) for age in ages)
        self._seen[ranks] = steps

    def _ask(self, question: str, query: str) -> pa.Table:
        since_us = round((REAL_WORLD.now() - WINDOW_S) * 1_000_000)
        began = REAL_WORLD.monotonic()
        data = self._client.sql(query.format(run=RUN_ID, since_us=since_us))
        self.looked.answers[question].append(REAL_WORLD.monotonic() - began)
        return pa.ipc.open_stream(io.BytesIO(data)).read_all()


def read(address: tuple[str, str], num_ranks: int, stop: Event, answer: Connection) -> None:
    """A process: one reader until told to stop; answers with what it met."""
    reader = _Reader(Client(*address), num_ranks)
    reader.read(stop)
    answer.send(reader.looked)
    answer.close()
