"""What perfect foresight would have paid: an exact dynamic programme over a recorded window.

The state is (what runs where, what is left of its start, work left). Time is counted in the
greatest unit that divides a tick and a start, so nothing is rounded but the work, upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloudshift_lab.market.places import Floats
from cloudshift_lab.sim.market.replay import Episode
from cloudshift_lab.sim.market.traces import HOUR_S

_NEVER = 1e12


@dataclass(frozen=True, eq=False)
class _Units:
    """A job in whole units of time; ``chain``: what can be left of a start when a tick begins."""

    tick: int
    work: int
    chain: tuple[int, ...]

    def follows(self, position: int) -> tuple[int, int]:
        """After a tick: the new position in the chain, and the units that were trained."""
        left = self.chain[position]
        trained = self.tick - min(left, self.tick)
        return (min(position + 1, len(self.chain) - 1) if left else position), trained


def omniscient_usd(each: Episode) -> float:
    """The least that the job could have cost, done by the deadline; it may begin late.

    Transfers count as hidden and no work as lost: who knows the future copies in time.
    """
    units = _units(each)
    regions, firsts, inside = np.unique(
        np.array(each.places.regions), return_index=True, return_inverse=True
    )
    carry = each.places.carry_usd[np.ix_(firsts, firsts)]
    on_demand = np.array(
        [each.places.on_demand_usd_h[inside == region].min() for region in range(len(regions))]
    )
    shape = (len(units.chain), units.work + 1)
    moving = _unless_done((len(regions), units.work + 1))
    spot = _unless_done((len(each.places), *shape))
    safe = _unless_done((len(regions), *shape))
    first = _NEVER
    for tick in range(len(each.is_up) - 1, -1, -1):
        prices = each.spot_usd_h[tick] * each.task.tick_h
        step_spot = _tick(spot, np.where(np.isfinite(prices), prices, _NEVER), units)
        step_safe = _tick(safe, on_demand * each.task.tick_h, units)
        begun = step_safe[:, 0].copy()
        for zone in np.flatnonzero(each.is_up[tick]):
            np.minimum(begun[inside[zone]], step_spot[zone, 0], out=begun[inside[zone]])
        first = min(first, float(begun[:, units.work].min()))
        after = np.minimum(moving, (carry[:, :, None] + begun[None]).min(axis=1))
        after[:, 0] = 0.0
        is_up = each.is_up[tick][:, None, None]
        leaving = after[inside][:, None, :]
        spot = np.where(is_up, np.minimum(step_spot, leaving), leaving)
        safe = np.minimum(step_safe, after[:, None, :])
        moving = after
    return first


def _units(each: Episode) -> _Units:
    tick_s, start_s = round(each.task.tick_h * HOUR_S), round(each.task.start_h * HOUR_S)
    unit_s = math.gcd(tick_s, start_s) or tick_s
    tick, left = tick_s // unit_s, start_s // unit_s
    chain = [left]
    while chain[-1] > 0:
        chain.append(max(0, chain[-1] - tick))
    work = math.ceil(each.task.work_h * HOUR_S / unit_s - 1e-6)
    return _Units(tick, work, tuple(chain))


def _unless_done(shape: Sequence[int]) -> Floats:
    """Costs from here on: nothing without work left, never otherwise."""
    costs = np.full(shape, _NEVER)
    costs[..., 0] = 0.0
    return costs


def _tick(costs: Floats, price_usd: Floats, units: _Units) -> Floats:
    """[places, chain, work left] of one paid tick, and what follows."""
    found = np.empty_like(costs)
    for position in range(len(units.chain)):
        following, trained = units.follows(position)
        found[:, position, : trained + 1] = 0.0
        rest = costs.shape[2] - trained
        found[:, position, trained:] = costs[:, following, :rest]
        found[:, position] += price_usd[:, None]
    found[..., 0] = 0.0
    return found
