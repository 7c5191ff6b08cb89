"""Who cannot reach which store for a while, though others can."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloudshift_lab.sim.scheduler import Scheduler, derived_random

_GENERATION = re.compile(r"-g(\d+)\.")
_MOST_GENERATIONS = 5


def party_of(actor: str) -> str:
    """The machine an actor is on: an attempt's agent, ranks and saver share one."""
    match = _GENERATION.search(actor)
    return f"g{match[1]}" if match is not None else actor.partition(".")[0]


@dataclass(frozen=True)
class Cut:
    """One machine and one store without a way between them, virtual seconds."""

    party: str
    url: str
    from_s: float
    until_s: float


class Partitions:
    """Up to three cuts of one history, drawn from its seed.

    Args:
        scheduler: Clock; knows who acts.
        urls: Of the stores.
        calm_at_s: No cut lasts longer.
        longest_s: Of a cut.
    """

    def __init__(
        self, scheduler: Scheduler, urls: list[str], *, calm_at_s: float, longest_s: float = 60.0
    ) -> None:
        self._scheduler = scheduler
        random = derived_random(scheduler.seed, "partitions")
        parties = ["conductor", *(f"g{number}" for number in range(1, _MOST_GENERATIONS + 1))]
        self.cuts: list[Cut] = []
        for _ in range(random.choice([0, 0, 0, 1, 2, 3])):
            from_s = random.random() * calm_at_s
            until_s = min(calm_at_s, from_s + random.random() * longest_s)
            self.cuts.append(Cut(random.choice(parties), random.choice(urls), from_s, until_s))

    def is_cut(self, url: str) -> bool:
        """Whether the current actor cannot reach the store now."""
        if not self.cuts:
            return False
        party, now = party_of(self._scheduler.current), self._scheduler.clock_s
        return any(
            (cut.party, cut.url) == (party, url) and cut.from_s <= now < cut.until_s
            for cut in self.cuts
        )
