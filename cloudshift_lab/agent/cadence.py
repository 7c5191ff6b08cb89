"""When the ranks are asked for a state to save, if that goes by the clock and not by steps."""

from __future__ import annotations

from cloudshift_lab.agent.pace import Pace
from cloudshift_lab.agent.protocols import RanksProtocol, RanksView
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.save_policy import (
    MAX_INTERVAL_S,
    EverySteps,
    Interval,
    SaveCost,
    YoungDaly,
    assumed_mtbf_s,
    describe,
    interval_of,
    parse_save_policy,
)
from cloudshift_lab.core.world import World

ASK_AGAIN_S = 60.0
ASK_AGAIN_STEPS = 5


class Cadence:
    """Evaluates the save policy of one attempt.

    A save is asked for only when the one before is committed, so that a slow store makes saves
    rarer and nothing else. The interval runs from a commit (or the first step) to the next asking.
    A save whose cost is to be measured waits for some steps without one, to compare with.

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
        self._asked: tuple[float, int, int | None] | None = None

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

    def tick(self, view: RanksView, *, is_saving: bool, is_wanted: bool = False) -> None:
        """Measure, and ask for the next save when it is time.

        Args:
            view: The ranks now.
            is_saving: Whether a staged step waits for its commit.
            is_wanted: Whether somebody wants a save now, whatever the policy says.
        """
        now = self._world.monotonic()
        self._settle(view, now)
        self._pace.look(view.num_steps, view.steps_s, now=now, is_saving=is_saving)
        is_busy = is_saving or self._asked is not None
        is_training = view.state == "running" and not view.staged_last
        if is_wanted and is_training and not is_busy:
            self._ask(view, now)
            return
        if isinstance(self._policy, EverySteps):
            return
        if is_busy or not is_training or not view.num_steps:
            self._quiet_since = None
            return
        if self._quiet_since is None:
            self._quiet_since = now
        if self._is_time(now - self._quiet_since):
            self._ask(view, now)

    def _ask(self, view: RanksView, now: float) -> None:
        self._asked = (now, view.num_steps, view.staged_step)
        self._ranks.capture()

    def _is_time(self, quiet_s: float) -> bool:
        is_new = isinstance(self._policy, YoungDaly) and self._pace.cost is None
        if is_new and not self._pace.is_ready and quiet_s < MAX_INTERVAL_S:
            return False
        interval = self._interval()
        return interval is not None and quiet_s >= interval.seconds

    def _settle(self, view: RanksView, now: float) -> None:
        """What was asked for is there; or is long overdue, and is asked for again.

        The ranks need some steps to agree, and those may take minutes each.
        """
        if self._asked is None:
            return
        asked_at, steps_then, staged_then = self._asked
        has_had_time = now - asked_at >= ASK_AGAIN_S
        is_overdue = has_had_time and view.num_steps - steps_then >= ASK_AGAIN_STEPS
        if view.staged_step != staged_then or is_overdue:
            self._asked = None

    def _interval(self) -> Interval | None:
        return interval_of(self._policy, self._pace.cost, self._mtbf_s)
