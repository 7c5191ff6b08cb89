"""What a run will have cost when it reaches a step, from the pace it has shown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from cloudshift_lab.core.costs import Finish
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, format_duration, format_usd
from cloudshift_lab.core.plan import Spread

MOST_BLOCKS = 12
LEAST_STEPS = 4
_P90 = 1.2816
"""Standard deviations between the median and the 90th percentile of a normal distribution."""


def pace_blocks(at: Sequence[float], step: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Steps and seconds of consecutive blocks of a run, breaks included.

    Args:
        at: When each of some steps ended, in order, seconds.
        step: Their numbers; a number not above all before it is a step done again.
    """
    kept: list[tuple[float, int]] = []
    for when, number in zip(at, step, strict=True):
        if not kept or number > kept[-1][1]:
            kept.append((when, number))
    if len(kept) < 2 or kept[-1][1] - kept[0][1] < LEAST_STEPS:
        return ()
    edges = np.unique(np.linspace(0, len(kept) - 1, min(MOST_BLOCKS, len(kept) - 1) + 1).round())
    chosen = [kept[int(edge)] for edge in edges]
    return tuple(
        (later[1] - earlier[1], later[0] - earlier[0])
        for earlier, later in itertools.pairwise(chosen)
    )


def finish_at_step(
    blocks: Sequence[tuple[int, float]],
    *,
    step: int,
    until_step: int,
    spent_micro_usd: int,
    micro_usd_per_h: int,
    now: float,
) -> Finish | None:
    """What the run will have cost at ``until_step``, and when; None while it has no pace.

    The pace is steps over seconds of the blocks together; its spread between blocks gives both
    what chance adds over the steps that are left and how well so few blocks tell the pace.

    Raises:
        UsageError: The run is past that step.
    """
    if until_step <= step:
        raise UsageError(f"the run is at step {step} already; name a later one than {until_step}")
    if not blocks:
        return None
    steps = np.array([num for num, _ in blocks], dtype=float)
    seconds = np.array([each for _, each in blocks], dtype=float)
    pace_s, left = float(seconds.sum() / steps.sum()), until_step - step
    blocks_ahead = left / float(steps.mean())
    spread_s = _spread(steps, seconds, pace_s)
    mean_s = left * pace_s
    sigma_s = spread_s * math.sqrt(blocks_ahead * (1 + blocks_ahead / len(steps)))
    low, high = max(0.0, mean_s - _P90 * sigma_s), mean_s + _P90 * sigma_s
    costs = [spent_micro_usd + micro_usd_per_h * each / HOUR_S for each in (low, mean_s, high)]
    return Finish(
        step=until_step,
        total_micro_usd=Spread(*costs),
        finish_at=Spread(now + low, now + mean_s, now + high),
        basis=f"{left:,} steps x {pace_s:.3g} s (as in {len(blocks)} stretches of this run, breaks "
        f"included: {format_duration(mean_s)}) x {format_usd(micro_usd_per_h)}/h as now, after "
        f"{format_usd(spent_micro_usd)}",
    )


def _spread(steps: np.ndarray, seconds: np.ndarray, pace_s: float) -> float:
    """Seconds by which a block is off the common pace, as a standard deviation."""
    if len(steps) < 2:
        return float(seconds.sum()) / 2
    off = seconds - steps * pace_s
    return float(math.sqrt((off**2).sum() / (len(steps) - 1)))
