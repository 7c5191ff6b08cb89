"""A test bed: a conductor of our own, its runs and moves, and waiting for them with a limit."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import CloudshiftError, Exhausted, Unavailable
from cloudshift_lab.core.plan import FINAL_PHASES, Decision, MigrationView
from cloudshift_lab.core.run import FINAL_STATES, RunSpec, RunView
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.engines.process import has_ended

T = TypeVar("T")
LIMIT_S = 600.0
_POLL_S = 0.1


class Bed:
    """One state directory with its conductor; use as a context manager.

    Args:
        home: The state directory; its cloud list is there already.
        world: Clock.
    """

    def __init__(self, home: Path, world: World = REAL_WORLD) -> None:
        self.home = home
        self._world = world
        self.client = Client.connect(home)

    def __enter__(self) -> Bed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop what still runs, then the conductor; what cannot be stopped in time is left."""
        with suppress(Unavailable, Exhausted):
            for run in self.client.runs():
                if run.state not in FINAL_STATES:
                    self.stop(run.run_id)
        daemon = discovery.find_daemon(self.home)
        with suppress(Unavailable):
            self.client.shutdown()
        if daemon is not None:
            with suppress(Exhausted):
                self.wait(
                    lambda: has_ended(daemon.pid, daemon.start_time) or None, "the conductor's end"
                )

    def wait(self, look: Callable[[], T | None], what: str, *, limit_s: float = LIMIT_S) -> T:
        """What ``look`` finds, as soon as it does; a conductor that is away is asked again.

        Raises:
            Exhausted: Nothing was found in time.
        """
        deadline = self._world.monotonic() + limit_s
        while True:
            with suppress(Unavailable):
                if (found := look()) is not None:
                    return found
            if self._world.monotonic() > deadline:
                raise Exhausted(f"waited {limit_s:.0f} s for {what}; see {self.home}")
            self._world.sleep(_POLL_S)

    def reach(self, run_id: str, step: int, *, limit_s: float = LIMIT_S) -> RunView:
        """The run once it has done a step.

        Raises:
            CloudshiftError: It ended before.
        """

        def reached() -> RunView | None:
            view = self.client.run(run_id)
            if view.step is not None and view.step >= step:
                return view
            refuse_ended(view)
            return None

        return self.wait(reached, f"{run_id} to reach step {step}", limit_s=limit_s)

    def train(self, spec: RunSpec) -> RunView:
        """Start a run."""
        return self.client.train(spec)

    def approve(self, view: MigrationView, by: str) -> MigrationView:
        """Approve a proposed move as shown."""
        decision = Decision(
            decision_id=self._world.new_id("decision"),
            plan_digest=view.plan.digest,
            verdict="approve",
            by=by,
            at=self._world.now(),
        )
        return self.client.decide(view.migration_id, decision)

    def end_of(
        self, migration_id: str, *, limit_s: float = LIMIT_S, approver: str | None = None
    ) -> MigrationView:
        """The move once it is over, however it ended.

        Args:
            migration_id: Which move.
            limit_s: Longest wait, seconds.
            approver: Who says yes when a bill that got worse is asked about; None: nobody.
        """

        def over() -> MigrationView | None:
            view = self.client.migration(migration_id)
            if view.phase == "asking" and approver is not None:
                self.approve(view, approver)
            return view if view.phase in FINAL_PHASES else None

        return self.wait(over, f"{migration_id} to end", limit_s=limit_s)

    def stop(self, run_id: str) -> RunView:
        """Stop a run; returns when it has."""
        self.client.stop(run_id)

        def stopped() -> RunView | None:
            view = self.client.run(run_id)
            return view if view.state in FINAL_STATES else None

        return self.wait(stopped, f"{run_id} to stop")


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM end this process as an error would: what it started outlives it otherwise."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_ended(view: RunView) -> None:
    """Raise CloudshiftError when a run ended by itself, with its reason."""
    if view.state in FINAL_STATES:
        why = view.error or "no reason was recorded"
        raise CloudshiftError(f"{view.run_id} ended as {view.state}: {why}\n{view.traceback or ''}")
