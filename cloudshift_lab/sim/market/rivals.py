"""What people do today, replayed under the same rules."""

from __future__ import annotations

import numpy as np

from cloudshift_lab.market.places import Choice, Look
from cloudshift_lab.market.safety import SafetyNet
from cloudshift_lab.sim.market.replay import Episode


class Stay:
    """The place that was cheapest at the beginning, on spot machines whenever it has any."""

    def __init__(self, each: Episode) -> None:
        self._net = each.net
        self._place: int | None = None

    def choose(self, look: Look) -> Choice | None:
        """Spot there, wait, or on demand when nothing else is in time."""
        if self._place is None:
            if not look.is_up.any():
                return _wait(self._net, look)
            self._place = _cheapest(look)
        if look.running is not None and look.running.mode == "on-demand":
            return look.running
        return _spot_at(self._place, self._net, look)


class UniformProgress:
    """Uniform Progress (NSDI 2024) that fails over to the cheapest place that has machines.

    Spot whenever there is any; on demand when behind the line from nothing to done at the
    deadline, until two starts ahead of it.
    """

    def __init__(self, each: Episode) -> None:
        self._net = each.net
        self._task = each.task

    def choose(self, look: Look) -> Choice | None:
        """Spot, on demand, or wait."""
        line_h = look.at_h * self._task.work_h / self._task.deadline_h
        running = look.running
        if running is not None and running.mode == "on-demand":
            is_ahead = look.done_h >= line_h + 2 * self._task.start_h
            if not is_ahead or not look.is_up.any():
                return running
        place = _cheapest(look) if look.is_up.any() else None
        if running is not None and running.mode == "spot":
            place = running.place
        if place is not None:
            return _spot_at(place, self._net, look)
        if look.done_h < line_h:
            return self._net.fallback(look)
        return _wait(self._net, look)


def _cheapest(look: Look) -> int:
    return int(np.argmin(np.where(look.is_up, look.spot_usd_h, np.inf)))


def _spot_at(place: int, net: SafetyNet, look: Look) -> Choice | None:
    spot = Choice(place, "spot")
    if look.running == spot:
        return spot if net.may_stay(look) else net.fallback(look)
    if look.is_up[place] and net.may_start(look)[place]:
        return spot
    return _wait(net, look)


def _wait(net: SafetyNet, look: Look) -> Choice | None:
    return None if net.may_wait(look) else net.fallback(look)
