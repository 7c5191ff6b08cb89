"""What an hour of training is worth, by how much of its slack a job has used.

It rises from a little above the usual spot price, while there is slack, to the price on demand:
the exponential threshold of one-way trading (pause-and-resume, arXiv 2303.17551). With hardly any
slack left it rises further: slack that is gone never comes back, and without it all the rest must
be bought on demand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloudshift_lab.market.places import Look, Task
from cloudshift_lab.market.tuning import Tuning

_SHORTEST_H = 1e-6
_BELOW_ON_DEMAND = 0.9


@dataclass(frozen=True)
class Slack:
    """How tight a job has become.

    Args:
        used: Share of the slack it began with, per hour of work, that is gone; 0 to 1.
        anxiety: How near it is to having none at all; 0 to 1.
        overhead: Share of restarts in its training so far, at least what is usual.
    """

    used: float
    anxiety: float
    overhead: float


def slack_of(task: Task, tuning: Tuning, look: Look, overhead_h: float) -> Slack:
    """The slack at one look; ``overhead_h``: spent on starts until now.

    A job without a deadline uses none.
    """
    prior_h = tuning.overhead_prior_h
    seen = (tuning.overhead * prior_h + overhead_h) / (prior_h + look.done_h)
    overhead = max(seen, tuning.overhead)
    if not np.isfinite(task.deadline_h):
        return Slack(0.0, 0.0, overhead)
    left_h = max(task.work_h - look.done_h, _SHORTEST_H)
    spare_h = task.deadline_h - look.at_h - left_h
    reserve_h = tuning.spare_starts * task.start_h
    first_h = task.deadline_h - task.work_h * (1 + tuning.overhead) - reserve_h
    had = max(first_h, task.tick_h) / task.work_h
    has = (spare_h - left_h * overhead - reserve_h) / left_h
    calm_h = max(tuning.anxious_starts * task.start_h, _SHORTEST_H)
    return Slack(_share(1 - has / had), _share(1 - spare_h / calm_h), overhead)


def hour_worth_usd(slack: Slack, tuning: Tuning, usual_usd_h: float, dearest_usd_h: float) -> float:
    """Of an hour at pace 1; ``dearest_usd_h``: the least that it costs on demand."""
    low = min(tuning.lowest * usual_usd_h, _BELOW_ON_DEMAND * dearest_usd_h)
    worth = low * (dearest_usd_h / low) ** (slack.used**tuning.steepness)
    return float(worth * (1 + (tuning.anxiety - 1) * slack.anxiety))


def _share(value: float) -> float:
    return float(np.clip(value, 0.0, 1.0))
