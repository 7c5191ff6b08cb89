"""One thread that asks the conductor on behalf of all open dashboard pages."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.conductor.discovery import find_daemon
from cloudshift_lab.core.errors import CloudshiftError, Unavailable
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.core.views import CostView, Series

POINTS = 500
_PERIOD_S = 1.0
_FORGET_S = 5.0
_COSTS_EVERY_S = 5.0


@dataclass(frozen=True)
class Snapshot:
    """What is known of the conductor at one moment.

    ``as_of`` is when the conductor last answered, ``offline_since`` when it stopped doing so; both
    wall-clock seconds.
    """

    runs: tuple[RunView, ...] = ()
    as_of: float | None = None
    offline_since: float | None = None
    problem: str = ""


class Feed:
    """Polls once a second, and only while somebody looks.

    Args:
        root: State directory of the conductor.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._snapshot = Snapshot()
        self._series: dict[str, Series] = {}
        self._costs: dict[str, CostView] = {}
        self._costed: dict[str, float] = {}
        self._watched: dict[str, float] = {}
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop polling."""
        self._ended.set()

    def look(self, run_id: str | None) -> tuple[Snapshot, Series | None]:
        """The newest snapshot and the curves of one run; never waits for the network."""
        with self._lock:
            self._looked_at = time.monotonic()
            if run_id is not None:
                self._watched[run_id] = self._looked_at
            return self._snapshot, self._series.get(run_id or "")

    def costs(self, run_id: str) -> CostView | None:
        """What a run has cost, as far as it was asked for; a few seconds old at most."""
        with self._lock:
            return self._costs.get(run_id)

    def _poll(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            if started - self._looked_at < _FORGET_S:
                self._ask(started)
            self._ended.wait(max(0.05, _PERIOD_S - (time.monotonic() - started)))

    def _ask(self, now: float) -> None:
        try:
            client = self._connect()
            runs = client.runs()
            self._keep(Snapshot(runs=runs, as_of=time.time()))
            for run_id in self._wanted(runs, now):
                series = client.series(run_id, points=POINTS)
                with self._lock:
                    self._series[run_id] = series
                self._ask_costs(client, run_id, now)
        except CloudshiftError as error:
            known = self._snapshot
            since = known.offline_since or time.time()
            self._keep(replace(known, offline_since=since, problem=error.message))

    def _ask_costs(self, client: Client, run_id: str, now: float) -> None:
        """The ledger, less often than the curves: it is made of all of a run's rows."""
        if now - self._costed.get(run_id, float("-inf")) < _COSTS_EVERY_S:
            return
        view = client.cost(run_id)
        with self._lock:
            self._costs[run_id], self._costed[run_id] = view, now

    def _connect(self) -> Client:
        """The running conductor, looked up anew each time: it may have been restarted elsewhere.

        Without a state directory the client never starts one: looking must not change anything.
        """
        daemon = find_daemon(self._root)
        if daemon is None:
            raise Unavailable("no conductor runs; start one with: python -m cloudshift_lab status")
        return Client(daemon.url, daemon.token)

    def _wanted(self, runs: tuple[RunView, ...], now: float) -> list[str]:
        """Runs somebody looks at, unless they ended and their curves are here already."""
        with self._lock:
            self._watched = {
                run_id: at for run_id, at in self._watched.items() if now - at < _FORGET_S
            }
            return [
                run.run_id
                for run in runs
                if run.run_id in self._watched
                and not (
                    run.state in FINAL_STATES and self._is_whole(run) and self._is_settled(run)
                )
            ]

    def _is_whole(self, run: RunView) -> bool:
        series = self._series.get(run.run_id)
        if series is None or run.step is None:
            return series is not None
        return bool(series.step) and series.step[-1] >= run.step

    def _is_settled(self, run: RunView) -> bool:
        """Whether the cost of an ended run was asked for after its end."""
        view = self._costs.get(run.run_id)
        return view is not None and view.as_of >= (run.ended_at or 0.0)

    def _keep(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._snapshot = snapshot
