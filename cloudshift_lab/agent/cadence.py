"""When the ranks are asked for a state to save, if that goes by the clock and not by steps."""

from __future__ import annotations

from cloudshift_lab.agent.pace import Pace
from cloudshift_lab.agent.protocols import RanksProtocol, RanksView
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.save_policy import (
    EverySteps,
    Interval,
    SaveCost,
    assumed_mtbf_s,
    describe,
    interval_of,
    parse_save_policy,
)
from cloudshift_lab.core.world import World

ASK_AGAIN_S = 60.0


class Cadence:
    """Evaluates the save policy of one attempt.

    A save is asked for only when the one before is committed, so that a slow store makes saves
    rarer and nothing else. The interval runs from a commit (or the first step) to the next asking.

    Args:
        job: Its policy and placement.
        ranks: Who is asked.
        world: Clock.
    """

    def __init__(self, job: JobSpec, ranks: RanksProtocol, world: World) -> None:
        self._policy = parse_save_policy(job.save_policy)
        self._mtbf_s = assumed_mtbf_s(job.placement)
        self._ranks = ranks
        self._world = world
        self._pace = Pace()
        self._quiet_since: float | None = None
        self._asked: tuple[float, int | None] | None = None

    @property
    def cost(self) -> SaveCost | None:
        """What a save costs, as measured so far."""
        return self._pace.cost

    @property
    def words(self) -> str:
        """How often the run is saved, and why, for a status line."""
        return describe(self._policy, self._interval())

    def restart(self) -> None:
        """The ranks were started again."""
        self._pace.restart()
        self._quiet_since = self._asked = None

    def tick(self, view: RanksView, *, is_saving: bool) -> None:
        """Measure, and ask for the next save when it is time.

        Args:
            view: The ranks now.
            is_saving: Whether a staged step waits for its commit.
        """
        now = self._world.monotonic()
        self._settle(view, now)
        is_busy = is_saving or self._asked is not None
        self._pace.look(view.num_steps, view.steps_s, now=now, is_saving=is_busy)
        if isinstance(self._policy, EverySteps):
            return
        if is_busy or view.state != "running" or view.staged_last or not view.num_steps:
            self._quiet_since = None
            return
        if self._quiet_since is None:
            self._quiet_since = now
        interval = self._interval()
        if interval is not None and now - self._quiet_since >= interval.seconds:
            self._asked = (now, view.staged_step)
            self._ranks.capture()

    def _settle(self, view: RanksView, now: float) -> None:
        """What was asked for is there; or is long overdue, and is asked for again."""
        if self._asked is None:
            return
        asked_at, staged_then = self._asked
        if view.staged_step != staged_then or now - asked_at >= ASK_AGAIN_S:
            self._asked = None

    def _interval(self) -> Interval | None:
        return interval_of(self._policy, self._pace.cost, self._mtbf_s)
