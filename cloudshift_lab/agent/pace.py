"""What a save costs: how much longer steps take while one is under way, and how long it is."""

from __future__ import annotations

from cloudshift_lab.core.save_policy import SaveCost

_ENOUGH_STEPS = 3
_FORGET_STEPS = 200
_NEWEST_WEIGHT = 0.5


class Pace:
    """Splits the steps into those beside a save and those without; nothing is asked of the ranks.

    The time lost by a save is the duration of the steps that ran beside it, also of the one during
    which it ended, less as many steps at the pace of the quiet ones: stall and slow-down together.
    Later saves count more.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None
        self._quiet_steps, self._quiet_s = 0.0, 0.0
        self._beside_steps, self._beside_s = 0, 0.0
        self._began: float | None = None
        self._ended: float | None = None
        self._lost_s: float | None = None
        self._save_s: float | None = None

    def restart(self) -> None:
        """The ranks were started again: what they count begins anew."""
        self._seen = self._began = self._ended = None

    def look(self, num_steps: int, steps_s: float, *, now: float, is_saving: bool) -> None:
        """Take in how far the ranks are.

        Args:
            num_steps: Steps that have ended since the ranks' start.
            steps_s: How long those took together, seconds.
            now: Monotonic seconds.
            is_saving: Whether a staged step is being encoded or uploaded.
        """
        steps, seconds = 0, 0.0
        if self._seen is not None:
            steps, seconds = num_steps - self._seen[0], steps_s - self._seen[1]
        self._seen = (num_steps, steps_s)
        if is_saving and self._began is None:
            self._began, self._beside_steps, self._beside_s = now, 0, 0.0
        if self._began is None:
            self._note_quiet(steps, seconds)
            return
        self._beside_steps += steps
        self._beside_s += seconds
        if is_saving:
            self._ended = None
            return
        self._ended = self._ended or now
        if steps:  # the step during which the save ended is over
            self._end_save(self._ended - self._began)
            self._began = self._ended = None

    @property
    def is_ready(self) -> bool:
        """Whether enough quiet steps were seen to tell what the next save costs."""
        return self._knows_steps and self._began is None

    @property
    def _knows_steps(self) -> bool:
        return self._quiet_steps >= _ENOUGH_STEPS

    @property
    def cost(self) -> SaveCost | None:
        """What a save costs; None until one has ended and some quiet steps were seen."""
        if self._lost_s is None or self._save_s is None:
            return None
        return SaveCost(self._lost_s, self._save_s, self._step_s)

    @property
    def _step_s(self) -> float:
        return self._quiet_s / self._quiet_steps

    def _note_quiet(self, steps: int, seconds: float) -> None:
        self._quiet_steps += steps
        self._quiet_s += seconds
        if self._quiet_steps > _FORGET_STEPS:
            self._quiet_steps /= 2
            self._quiet_s /= 2

    def _end_save(self, save_s: float) -> None:
        self._save_s = _blend(self._save_s, save_s)
        if self._knows_steps:
            lost_s = max(0.0, self._beside_s - self._beside_steps * self._step_s)
            self._lost_s = _blend(self._lost_s, lost_s)


def _blend(former: float | None, newest: float) -> float:
    if former is None:
        return newest
    return former + _NEWEST_WEIGHT * (newest - former)
