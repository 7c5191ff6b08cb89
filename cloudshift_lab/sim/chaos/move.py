"""One move under attack: its phases watched in its journal, faults delivered, all of it healed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.moves import journal_path
from cloudshift_lab.core.errors import Exhausted, Unavailable
from cloudshift_lab.core.plan import Plan
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import Effect, Saga
from cloudshift_lab.sim.chaos.report import Kill
from cloudshift_lab.sim.chaos.schedule import Strike
from cloudshift_lab.sim.chaos.victims import Undo, Victims

MOVE_LIMIT_S = 420.0
_LOOK_EVERY_S = 0.004
_CONDUCTOR_BACK_S = 0.5


class _Nobody:
    """Runs no effect: the journal is only read."""

    def run(self, effect: Effect, saga: Saga) -> None:
        """Never called, since nothing ticks."""
        raise AssertionError(f"{effect.name} of {saga.plan.migration_id} is the conductor's")


class Watch:
    """The saga of a move, folded from its journal whenever that has grown."""

    def __init__(self, home: Path, plan: Plan, world: World) -> None:
        self._path = journal_path(home / "runs" / plan.run_id, plan.migration_id)
        self._world = world
        self._size = -1
        self.saga = self._read()

    def look(self) -> Saga:
        """The newest saga."""
        if self._path.stat().st_size != self._size:
            self.saga = self._read()
        return self.saga

    def _read(self) -> Saga:
        self._size = self._path.stat().st_size
        return MigrationDriver(Journal(self._path), _Nobody(), self._world).saga


class AttackedMove:
    """Drives one approved move to its end through its strikes.

    Args:
        home: State directory.
        plan: The move.
        strikes: In the order of their phases.
        victims: Who can be hit.
        world: Clock.
    """

    def __init__(
        self, home: Path, plan: Plan, strikes: tuple[Strike, ...], victims: Victims, world: World
    ) -> None:
        self._home = home
        self._plan = plan
        self._waiting = list(strikes)
        self._victims = victims
        self._world = world
        self._watch = Watch(home, plan, world)
        self._undo_at: list[tuple[float, Undo]] = []
        self._away_since: float | None = None
        self.kills: list[Kill] = []

    @property
    def missed(self) -> tuple[Strike, ...]:
        """Strikes that did not hit anything."""
        return tuple(self._waiting)

    def run(self) -> Saga:
        """The move's last state, with everything healed.

        Raises:
            Exhausted: The move did not end.
        """
        until = self._world.monotonic() + MOVE_LIMIT_S
        phase, entered = None, self._world.monotonic()
        try:
            while not (saga := self._watch.look()).is_final:
                now = self._world.monotonic()
                if saga.phase != phase:
                    phase, entered = saga.phase, now
                self._strike(saga, now - entered)
                self._heal(now)
                self._keep_conductor(now)
                if now > until:
                    raise Exhausted(
                        f"{self._plan.migration_id} is still {saga.phase} ({saga.effect}) after "
                        f"{MOVE_LIMIT_S:.0f} s: {saga.error}; see {self._home}"
                    )
                self._world.sleep(_LOOK_EVERY_S)
        finally:
            self._heal(float("inf"))
        return saga

    def _strike(self, saga: Saga, since_s: float) -> None:
        for strike in list(self._waiting):
            if strike.phase != saga.phase or since_s < strike.after_s:
                continue
            undo = self._victims.strike(strike.victim, self._plan)
            if undo is None:
                continue
            self._waiting.remove(strike)
            self._undo_at.append((self._world.monotonic() + strike.lasts_s, undo))
            self.kills.append(
                Kill(self._plan.migration_id, saga.phase, strike.victim, round(since_s, 3),
                     round(strike.lasts_s, 1))
            )  # fmt: skip

    def _heal(self, now: float) -> None:
        """Undo what has lasted long enough."""
        due = [each for each in self._undo_at if each[0] <= now]
        for each in due:
            self._undo_at.remove(each)
            each[1]()

    def _keep_conductor(self, now: float) -> None:
        """Start another conductor a moment after one was killed, as the next call would."""
        if discovery.find_daemon(self._home) is not None:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        elif now - self._away_since > _CONDUCTOR_BACK_S:
            with suppress(Unavailable):
                Client.connect(self._home)
