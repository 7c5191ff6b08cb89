"""When a training loop of one's own saves: counted in steps, or timed from what saves cost."""

from __future__ import annotations

import statistics
import time
from collections import deque

from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.save_policy import (
    JOB_MTBF_H,
    EverySteps,
    SaveCost,
    SavePolicy,
    interval_of,
)
from cloudshift_lab.training.agreement import Agreement, Flags
from cloudshift_lab.training.background import SaveHandle
from cloudshift_lab.training.tenancy import Ranks

_STEPS_MEASURED = 50


class Pace:
    """Decides at each step whether to save; all ranks come to the same answer.

    A policy of time goes by rank 0's clock, which the ranks agree upon one step later.

    Args:
        policy: How often.
        ranks: Who decides together.
        mtbf_s: Mean time between failures of the job, seconds; None: a day.
    """

    def __init__(self, policy: SavePolicy, ranks: Ranks, mtbf_s: float | None) -> None:
        self._policy = policy
        self._ranks = ranks
        self._mtbf_s = JOB_MTBF_H * HOUR_S if mtbf_s is None else mtbf_s
        self._agreement = None if isinstance(policy, EverySteps) else Agreement()
        self._num_served = 0
        self._saved_at = self._called_at = time.perf_counter()
        self._steps_s: deque[float] = deque(maxlen=_STEPS_MEASURED)
        self._stall_s = self._slower_s = 0.0
        self._underway: SaveHandle | None = None
        self._cost: SaveCost | None = None

    def is_due(self, step: int, *, is_busy: bool) -> bool:
        """Whether to save after this step. Every rank asks once a step."""
        now = time.perf_counter()
        self._measure(now)
        if self._agreement is None:
            assert isinstance(self._policy, EverySteps), "only counted steps need no agreement"
            return step % self._policy.steps == 0
        flags = self._agreement.read()
        is_due = flags.capture > self._num_served and not flags.is_busy
        if is_due:
            self._num_served = flags.capture
        wants = self._ranks.rank == 0 and not is_due and self._is_time(now)
        self._agreement.send(Flags(is_busy=is_busy, capture=self._num_served + wants))
        return is_due

    def saved(self, stall_s: float, handle: SaveHandle) -> None:
        """A save has begun, for which training stood still so long."""
        self._saved_at = self._called_at = time.perf_counter()
        self._stall_s, self._slower_s, self._underway = stall_s, 0.0, handle

    def _is_time(self, now: float) -> bool:
        interval = interval_of(self._policy, self._cost, self._mtbf_s)
        return interval is not None and now - self._saved_at >= interval.seconds

    def _measure(self, now: float) -> None:
        """What a step took, and what the save under way has cost once it is done."""
        step_s, self._called_at = now - self._called_at, now
        if self._underway is None:
            self._steps_s.append(step_s)
            return
        usual_s = statistics.median(self._steps_s) if self._steps_s else step_s
        self._slower_s += max(step_s - usual_s, 0.0)
        if self._underway.upload_completion.done():
            self._underway = None
            save_s = now - self._saved_at
            self._cost = SaveCost(self._stall_s + self._slower_s, save_s, usual_s)
