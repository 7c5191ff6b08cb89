"""``bench advice``: the policy in simulated markets, beside rivals, and how fast it decides.

Recorded markets are replayed by ``market replay``; these ones need no data and exist nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.market.places import Look, Places, Policy, Task
from cloudshift_lab.market.policy import CostToFinish
from cloudshift_lab.sim.bench.rows import Row, Say, Size, at_most, exactly, median, percentile, row
from cloudshift_lab.sim.market.optimum import omniscient_usd
from cloudshift_lab.sim.market.replay import Episode, play
from cloudshift_lab.sim.market.rivals import Stay, UniformProgress
from cloudshift_lab.sim.market.score import geometric_mean
from cloudshift_lab.sim.market.weather import simulated_job

_NUM_OFFERS = 200
_MAKERS: dict[str, Callable[[Episode], Policy]] = {
    "ours": lambda each: CostToFinish(each.places, each.task, net=each.net),
    "stay": Stay,
    "uniform progress": UniformProgress,
}


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """All rows; prices and failures are simulated, the durations are measured."""
    num = 3 if size == "tiny" else 100
    return (*_costs(num, say), _deadlines(num, say), *_latency(num, say))


def _costs(num: int, say: Say) -> tuple[Row, ...]:
    ratios: dict[str, list[float]] = {name: [] for name in _MAKERS}
    for seed in range(num):
        each = simulated_job(seed)
        least = omniscient_usd(each)
        for name, make in _MAKERS.items():
            ratios[name].append(play(each, make(each)).usd / least)
    say(f"{num} simulated jobs, each with three policies and hindsight")
    return tuple(
        row(
            f"simulated markets, cost / omniscient: {name}", geometric_mean(samples), "x",
            samples=samples, note=f"worst {max(samples):.2f}",
        )
        for name, samples in ratios.items()
    )  # fmt: skip


def _deadlines(num: int, say: Say) -> Row:
    """Lost work and slow transfers in turn, in storms of their own."""
    missed = 0
    for seed in range(num):
        hard = simulated_job(
            10_000 + seed, num_regions=2, ticks=120, checkpoint_h=(0.0, 0.25, 1.0)[seed % 3],
            transfer_h=(0.0, 0.9)[seed % 2],
        )  # fmt: skip
        missed += not play(hard, _MAKERS["ours"](hard)).on_time
    say(f"{num} simulated jobs that lose work and wait for transfers")
    return row(
        "simulated markets, deadlines missed with lost work and exposed transfers", missed, "jobs",
        goal=exactly(0), note=f"of {num}",
    )  # fmt: skip


def _latency(num: int, say: Say) -> tuple[Row, ...]:
    names = [f"place-{at}" for at in range(_NUM_OFFERS)]
    regions = [f"region-{at // 3}" for at in range(_NUM_OFFERS)]
    rng = np.random.default_rng(0)
    places = Places.of(
        names, regions, rng.uniform(30, 60, _NUM_OFFERS), np.zeros((_NUM_OFFERS,) * 2)
    )
    policy = CostToFinish(places, Task(work_h=100, deadline_h=150, start_h=0.2, tick_h=0.1))
    spent_ms = _spent_ms(policy, rng, 20 + 10 * num)
    say(f"{len(spent_ms)} decisions over {_NUM_OFFERS} offers")
    return (
        row(
            f"a decision over {_NUM_OFFERS} offers, median", median(spent_ms), "ms",
            samples=spent_ms, goal=at_most(5), full_only=True,
        ),
        row(
            f"a decision over {_NUM_OFFERS} offers, p95", percentile(spent_ms, 0.95), "ms",
            samples=spent_ms,
        ),
    )  # fmt: skip


def _spent_ms(policy: CostToFinish, rng: np.random.Generator, num: int) -> Sequence[float]:
    look = Look(0.0, 0.0, rng.uniform(5, 30, _NUM_OFFERS), rng.random(_NUM_OFFERS) < 0.7)
    spent = []
    for tick in range(num):
        at = replace(look, at_h=tick * 0.1, is_up=rng.random(_NUM_OFFERS) < 0.7)
        began = REAL_WORLD.monotonic()
        choice = policy.choose(at)
        spent.append((REAL_WORLD.monotonic() - began) * 1e3)
        if choice is not None:
            look = replace(look, running=choice, home=choice.place)
            look.is_up[choice.place] = True
    return spent
