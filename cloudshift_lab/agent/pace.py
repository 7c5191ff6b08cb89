"""What a save costs: how much longer steps take while one is under way, and how long it is."""

from __future__ import annotations

from cloudshift_lab.core.save_policy import SaveCost

_ENOUGH_STEPS = 3
_FORGET_STEPS = 200
_NEWEST_WEIGHT = 0.5


class Pace:
    """Splits the steps into those beside a save and those without; nothing is asked of the ranks.

    The time lost by a save is the duration of the steps that ended beside it, less as many steps
    at the pace of the quiet ones: stall and slow-down together. Later saves count more.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None
        self._quiet_steps, self._quiet_s = 0.0, 0.0
        self._beside_steps, self._beside_s = 0, 0.0
        self._began: float | None = None
        self._lost_s: float | None = None
        self._save_s: float | None = None

    def restart(self) -> None:
        """The ranks were started again: what they count begins anew."""
        self._seen = self._began = None

    def look(self, num_steps: int, steps_s: float, *, now: float, is_saving: bool) -> None:
        """Take in how far the ranks are.

        Args:
            num_steps: Steps that have ended since the ranks' start.
            steps_s: How long those took together, seconds.
            now: Monotonic seconds.
            is_saving: Whether a step is being copied, encoded or uploaded.
        """
        steps, seconds = 0, 0.0
        if self._seen is not None:
            steps, seconds = num_steps - self._seen[0], steps_s - self._seen[1]
        self._seen = (num_steps, steps_s)
        if is_saving and self._began is None:
            self._began, self._beside_steps, self._beside_s = now, 0, 0.0
        if self._began is not None:
            self._beside_steps += steps
            self._beside_s += seconds
        else:
            self._note_quiet(steps, seconds)
        if not is_saving and self._began is not None:
            self._end_save(now - self._began)
            self._began = None

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
        if self._quiet_steps >= _ENOUGH_STEPS:
            lost_s = max(0.0, self._beside_s - self._beside_steps * self._step_s)
            self._lost_s = _blend(self._lost_s, lost_s)


def _blend(former: float | None, newest: float) -> float:
    if former is None:
        return newest
    return former + _NEWEST_WEIGHT * (newest - former)
