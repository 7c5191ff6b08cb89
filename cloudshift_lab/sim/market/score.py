"""Scores of replays: ratios to hindsight, by cell and over all, with honest intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_SEED = 20261123
_DRAWS = 2000


@dataclass(frozen=True)
class Case:
    """One job in one window, USD.

    Args:
        cell: The scenario's label.
        block: Which stretch of the recording it lies in: cases of one block are not independent.
        rivals_usd: By name, what others would have paid.
    """

    cell: str
    block: str
    start: int
    usd: float
    omniscient_usd: float
    rivals_usd: dict[str, float]
    on_time: bool
    num_starts: int


@dataclass(frozen=True)
class Interval:
    """A figure with the 95 % interval of a bootstrap over blocks."""

    value: float
    low: float
    high: float


def cell_ratio(cases: Sequence[Case]) -> float:
    """Mean cost over mean cost in hindsight, of one cell."""
    return sum(case.usd for case in cases) / sum(case.omniscient_usd for case in cases)


def by_cell(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Cases of each cell, in the order in which the cells come."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.cell, []).append(case)
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def headline(cases: Sequence[Case]) -> float:
    """Geometric mean of the cells' ratios."""
    return geometric_mean([cell_ratio(each) for each in by_cell(cases).values()])


def with_interval(
    cases: Sequence[Case], figure: Callable[[Sequence[Case]], float] = headline
) -> Interval:
    """A figure, and what it is between when whole blocks are drawn again with replacement.

    Within a block windows overlap and share their market's weather, so blocks are what is drawn.
    """
    blocks: dict[str, list[Case]] = {}
    for case in cases:
        blocks.setdefault(case.block, []).append(case)
    names = sorted(blocks)
    rng = np.random.default_rng(_SEED)
    cells = set(by_cell(cases))
    drawn = []
    for _ in range(_DRAWS):
        chosen = [
            case for at in rng.integers(len(names), size=len(names)) for case in blocks[names[at]]
        ]
        if set(by_cell(chosen)) == cells:
            drawn.append(figure(chosen))
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (math.nan, math.nan)
    return Interval(figure(cases), float(low), float(high))


def worst_harm(cases: Sequence[Case]) -> float:
    """Of single windows: cost over that of the best rival there."""
    return max((case.usd / min(case.rivals_usd.values()) for case in cases), default=math.nan)


def misses(cases: Sequence[Case]) -> int:
    """Deadlines that were not met."""
    return sum(not case.on_time for case in cases)
