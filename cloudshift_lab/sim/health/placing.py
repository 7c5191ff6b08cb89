"""Which faults of a real trace hit a job, by where it is placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.health.hazard import FADES_DAYS, FLEET_DAYS, features, week_risk
from cloudshift_lab.sim.health.data import Fault

DAY_S = 86400.0
Placing = Literal["back", "any", "history"]
"""Who takes a lost node's place."""
PLACINGS: dict[Placing, str] = {
    "back": "a fixed set of nodes, repaired ones come back with the next restart",
    "any": "any spare, for good",
    "history": "the spare with the least risk, for good",
}
Interruptions = tuple[float, ...]
"""Seconds at which a job loses a node, rising."""


@dataclass(frozen=True)
class Fleet:
    """Nodes by number; those without faults come last.

    Args:
        num_nodes: All of them.
        hits: Day and node of each fault, oldest first.
        down: Per node, beginnings and ends of its faults, days.
        days: Until when faults are known.
    """

    num_nodes: int
    hits: tuple[tuple[float, int], ...]
    down: tuple[tuple[tuple[float, float], ...], ...]
    days: float

    @staticmethod
    def of(episodes: Sequence[Fault], num_clean: int) -> Fleet:
        """The nodes of a trace, and so many more that never failed."""
        names = sorted({each.node for each in episodes})
        place = {name: index for index, name in enumerate(names)}
        down: list[list[tuple[float, float]]] = [[] for _ in range(len(names) + num_clean)]
        for each in episodes:
            down[place[each.node]].append((each.begin, each.end))
        return Fleet(
            num_nodes=len(down), hits=tuple((each.begin, place[each.node]) for each in episodes),
            down=tuple(tuple(spans) for spans in down), days=max(each.begin for each in episodes),
        )  # fmt: skip

    def is_up(self, node: int, day: float) -> bool:
        """Whether a node is in service."""
        return not any(begin <= day < end for begin, end in self.down[node])

    def risks(self, nodes: Sequence[int], day: float) -> dict[int, float]:
        """Risk of each node's next week, from what was known on that day."""
        recent = [at for at, _ in self.hits if day - 10 * FLEET_DAYS < at <= day]
        return {
            node: week_risk(features(self._begins(node, day), recent, self.num_nodes, day))
            for node in nodes
        }

    def _begins(self, node: int, day: float) -> list[float]:
        return [begin for begin, _ in self.down[node] if day - 20 * FADES_DAYS < begin <= day]


def interruptions(fleet: Fleet, num_nodes: int, seed: int, placing: Placing) -> Interruptions:
    """When a job loses a node, which is replaced at once.

    Args:
        fleet: All nodes.
        num_nodes: Nodes of the job.
        seed: Of the first placement and of the choice between spares that are alike.
        placing: Who takes the place.

    Raises:
        UsageError: A node was lost and no spare was in service.
    """
    rng = np.random.default_rng(seed)
    order = [int(node) for node in rng.permutation(fleet.num_nodes)]
    home = [node for node in order if fleet.is_up(node, 0.0)][:num_nodes]
    job, at_s = set(home), []
    for day, node in fleet.hits:
        if node not in job:
            continue
        at_s.append(day * DAY_S)
        stay = home if placing == "back" else [each for each in order if each in job]
        job = {each for each in stay if each != node and fleet.is_up(each, day)}
        spares = [
            each for each in order if each not in job and each != node and fleet.is_up(each, day)
        ]
        missing = num_nodes - len(job)
        if len(spares) < missing:
            raise UsageError(f"no spare is left on day {day:.0f} of the trace; give fewer --nodes")
        if placing == "history":
            risks = fleet.risks(spares, day)
            job.update(sorted(spares, key=risks.__getitem__)[:missing])  # ties: as drawn
        else:
            job.update(int(each) for each in rng.choice(spares, missing, replace=False))
    return tuple(at_s)
