"""How far the ranks of a node are, how fast, and with which losses: learnt from their reports."""

from __future__ import annotations

import statistics
from collections import deque

from cloudshift_lab.core.staging import StepReport

NUM_LOSSES = 64
_LOSSES_KEPT = 1000


class Progress:
    """What the reports of one start say. Steps that were rehearsed have no times here.

    ``num_steps`` steps, all without the first (which compiles), took ``steps_s`` seconds together.
    ``first_step_at`` and ``last_step_at`` are wall-clock seconds.

    Args:
        lead: The rank whose losses and pace stand for all: they step together.
    """

    def __init__(self, lead: int = 0) -> None:
        self._lead = lead
        self._newest: dict[int, StepReport] = {}
        self._losses: dict[int, float] = {}
        self._durations_s: deque[float] = deque(maxlen=NUM_LOSSES)
        self.num_steps = 0
        self.steps_s = 0.0
        self.first_step_at: float | None = None
        self.last_step_at: float | None = None

    def add(self, row: StepReport) -> None:
        """Learn from one report."""
        known = self._newest.get(row.rank)
        if known is None or row.step > known.step:
            self._newest[row.rank] = row
        if not row.rehearsed:
            self.first_step_at = min(row.ts, self.first_step_at or row.ts)
            self.last_step_at = max(row.ts, self.last_step_at or row.ts)
        if row.rank == self._lead:
            self._measure(row, is_first=known is None)

    @property
    def step(self) -> int | None:
        """The newest step that every rank has reported, of those that report."""
        return min((row.step for row in self._newest.values()), default=None)

    @property
    def loss(self) -> float | None:
        """The loss of the newest step of any rank."""
        newest = max(self._newest.values(), key=lambda row: row.step, default=None)
        return None if newest is None else newest.loss

    @property
    def step_s(self) -> float | None:
        """Median duration of the newest steps, seconds."""
        return statistics.median(self._durations_s) if self._durations_s else None

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """The newest steps of the lead with their losses, oldest first."""
        return tuple(sorted(self._losses.items())[-NUM_LOSSES:])

    def loss_of(self, step: int | None) -> float | None:
        """The loss of one of the newest steps, if it was told."""
        return None if step is None else self._losses.get(step)

    def _measure(self, row: StepReport, *, is_first: bool) -> None:
        if row.loss is not None:
            self._losses[row.step] = row.loss
            self._losses.pop(row.step - _LOSSES_KEPT, None)
        if row.step_s is not None and not is_first:
            self.num_steps += 1
            self.steps_s += row.step_s
            self._durations_s.append(row.step_s)
