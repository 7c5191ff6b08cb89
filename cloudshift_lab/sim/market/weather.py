"""Simulated markets: zones that come and go, prices that drift; a seed gives the same again."""

from __future__ import annotations

import numpy as np

from cloudshift_lab.market.places import Flags, Floats, Places, Task
from cloudshift_lab.sim.market.replay import Episode

_TICK_H = 1 / 6
_ON_DEMAND_USD_H = 40.0


def simulated_job(
    seed: int, *, num_regions: int = 4, ticks: int = 240, checkpoint_h: float = 0.0,
    transfer_h: float = 0.0,
) -> Episode:  # fmt: skip
    """A job in a market that exists nowhere.

    Every zone is up and down for exponential times around hours of its own; a region's storms
    take all its zones at once; spot prices are 15 to 40 % of on demand and drift.
    """
    rng = np.random.default_rng(seed)
    regions = tuple(f"region-{at}" for at in range(num_regions) for _ in range(rng.integers(1, 4)))
    num = len(regions)
    deadline_h = ticks * _TICK_H
    apart = (np.array(regions)[:, None] != np.array(regions)[None, :]).astype(float)
    on_demand = _ON_DEMAND_USD_H * rng.uniform(0.9, 1.2, num)
    return Episode(
        Places.of(
            [f"{region}-{at}" for at, region in enumerate(regions)], regions, on_demand,
            apart * float(rng.choice([0.1, 1.0, 10.0])),
        ),
        Task(deadline_h / float(rng.uniform(1.15, 1.6)), deadline_h, 0.2, _TICK_H),
        _up(rng, regions, ticks), _prices(rng, on_demand, ticks), apart * transfer_h, checkpoint_h,
    )  # fmt: skip


def _up(rng: np.random.Generator, regions: tuple[str, ...], ticks: int) -> Flags:
    names, inside = np.unique(np.array(regions), return_inverse=True)
    zones = _on_and_off(
        rng, ticks, rng.uniform(1, 12, len(regions)), rng.uniform(0.3, 3, len(regions))
    )
    calm = _on_and_off(rng, ticks, rng.uniform(5, 40, len(names)), rng.uniform(0.3, 5, len(names)))
    return np.asarray(zones & calm[:, inside])


def _on_and_off(rng: np.random.Generator, ticks: int, up_h: Floats, down_h: Floats) -> Flags:
    """[ticks, columns], a Markov chain each, begun in its stationary state."""
    state = rng.random(len(up_h)) < up_h / (up_h + down_h)
    found = np.zeros((ticks, len(up_h)), dtype=bool)
    for tick in range(ticks):
        found[tick] = state
        leaves = rng.random(len(up_h)) < _TICK_H / np.where(state, up_h, down_h)
        state = state ^ leaves
    return found


def _prices(rng: np.random.Generator, on_demand: Floats, ticks: int) -> Floats:
    first = np.log(on_demand * rng.uniform(0.15, 0.4, len(on_demand)))
    drift = rng.normal(0, 0.01, (ticks, len(on_demand))).cumsum(axis=0)
    return np.asarray(np.minimum(np.exp(first + drift), on_demand))
