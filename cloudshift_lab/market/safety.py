"""The net under every policy: whatever happens to spot machines, the deadline is met on demand.

It counts only durable progress, and every hour that may be needed: a start, carrying the
checkpoint, what a preemption may undo, and the tick that is being bought. The published rule
(Uniform Progress, NSDI 2024) counts live progress and misses deadlines where a preemption loses
work or a transfer delays the restart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudshift_lab.market.places import Choice, Flags, Floats, Look, Places, Task

_ROUNDING_H = 1e-9


@dataclass(frozen=True, eq=False)
class SafetyNet:
    """Which choices leave enough time to finish on demand.

    It trusts that on-demand machines can be had; where they cannot, only a reservation helps.

    Args:
        transfer_h: [places, places], for the checkpoint, while nothing trains; 0 where a copy is
            there already.
        undone_h: The most training that a preemption undoes: what is not yet in a checkpoint.
    """

    places: Places
    task: Task
    transfer_h: Floats
    undone_h: float = 0.0

    @classmethod
    def of(cls, places: Places, task: Task, undone_h: float = 0.0) -> SafetyNet:
        """With checkpoints that are wherever they are needed."""
        return cls(places, task, np.zeros((len(places), len(places))), undone_h)

    def carry_usd(self, home: int | None) -> Floats:
        """[places], egress from where the checkpoint lies; nothing before the first one."""
        return np.zeros(len(self.places)) if home is None else self.places.carry_usd[home]

    def wait_h(self, home: int | None) -> Floats:
        """[places], how long carrying the checkpoint there keeps a machine from training."""
        return np.zeros(len(self.places)) if home is None else self.transfer_h[home]

    def fallback(self, look: Look) -> Choice:
        """The cheapest way on demand from here that is in time; the fastest if none is."""
        if look.running is not None and look.running.mode == "on-demand":
            return look.running
        hours = self._on_demand_h(look.done_h, look.home)
        cost = self.places.on_demand_usd_h * hours + self.carry_usd(look.home)
        in_time = look.at_h + hours <= self.task.deadline_h + _ROUNDING_H
        if not (in_time & np.isfinite(cost)).any():
            return Choice(int(np.argmin(hours)), "on-demand")
        return Choice(int(np.argmin(np.where(in_time, cost, np.inf))), "on-demand")

    def may_wait(self, look: Look) -> bool:
        """Whether a tick without training still leaves time."""
        ends_h = self._next_h(look) + self._on_demand_h(look.done_h, look.home).min()
        return bool(ends_h <= self.task.deadline_h + _ROUNDING_H)

    def may_start(self, look: Look) -> Flags:
        """[places], whether spot machines taken there, and away after this tick, leave time."""
        every = np.arange(len(self.places))
        return self._may_train(look, every, self.wait_h(look.home), self.task.start_h)

    def may_stay(self, look: Look) -> bool:
        """Whether the spot machines that it runs on may be taken away after this tick."""
        assert look.running is not None, "only what runs can stay"
        start_h = min(look.starting_h, self.task.start_h)
        here, carry_h = np.array([look.running.place]), np.array([look.starting_h - start_h])
        return bool(self._may_train(look, here, carry_h, start_h)[0])

    def _may_train(
        self, look: Look, places: npt.NDArray[np.intp], carry_h: Floats, start_h: float
    ) -> Flags:
        """[places asked for]; a checkpoint that has not arrived by then is where it was."""
        tick_h, work_h = self.task.tick_h, self.task.work_h
        trained = np.maximum(0.0, tick_h - carry_h - start_h) * self.places.pace[places]
        kept = np.maximum(0.0, trained - self.undone_h)
        onward_h = self.transfer_h[places]
        if look.home is not None:
            onward_h = np.where(carry_h[:, None] > tick_h, self.transfer_h[look.home], onward_h)
        rest_h = (work_h - look.done_h - kept)[:, None] / self.places.pace
        rest_h = np.where(np.isfinite(self.places.on_demand_usd_h), rest_h + onward_h, np.inf)
        ends_h = self._next_h(look) + self.task.start_h + rest_h.min(axis=1)
        is_done = look.done_h + trained >= work_h - _ROUNDING_H
        ends_h = np.where(is_done, self._next_h(look), ends_h)
        return np.asarray(ends_h <= self.task.deadline_h + _ROUNDING_H)

    def _next_h(self, look: Look) -> float:
        return look.at_h + self.task.tick_h

    def _on_demand_h(self, done_h: float, home: int | None) -> Floats:
        """[places], until the job is done on demand there; inf where that is not offered."""
        hours = self.wait_h(home) + self.task.start_h
        hours = hours + (self.task.work_h - done_h) / self.places.pace
        return np.where(np.isfinite(self.places.on_demand_usd_h), hours, np.inf)
