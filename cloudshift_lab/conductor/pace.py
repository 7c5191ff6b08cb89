"""How fast an attempt trains right now, seen from outside through what its agent says."""

from __future__ import annotations

from cloudshift_lab.core.orders import AgentStatus

_FEWEST_STEPS = 2


class Pace:
    """Seconds per step between the first and the newest word of an agent."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self._told: float | None = None

    def see(self, status: AgentStatus | None) -> None:
        """Take in an agent's word."""
        if status is None:
            return
        self._told = status.step_s or self._told
        if status.step is None or status.last_step_at is None:
            return
        self._last = (status.step, status.last_step_at)
        self._first = self._first or self._last

    def step_s(self) -> float | None:
        """As watched when enough steps went by, else as the agent said; None when unknown."""
        if self._first is not None and self._last is not None:
            steps = self._last[0] - self._first[0]
            seconds = self._last[1] - self._first[1]
            if steps >= _FEWEST_STEPS and seconds > 0:
                return seconds / steps
        return self._told
