"""Which victims are hit in which phases, by seed: first pairs that were not hit, then any."""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

from cloudshift_lab.core.plan import ClosingKind, Phase
from cloudshift_lab.sim.chaos.report import PHASES, VICTIMS, Victim

FATAL: frozenset[Victim] = frozenset(
    {
        "source agent", "target agent", "source rank", "target rank",
        "source rank 0", "target rank 0",
    }
)  # fmt: skip
"""Before the commit these end the move: it is rolled back."""

_GENTLE = tuple(victim for victim in VICTIMS if victim not in FATAL)
_ORDER: tuple[Phase, ...] = (*PHASES, "rolling_back")
_LASTING: frozenset[Victim] = frozenset(
    {"source store frozen", "target store frozen", "store on disk killed", "link cut"}
)
_AFTER_COMMIT: frozenset[Phase] = frozenset({"committed", "resumed"})
_ONLY: dict[Phase, ClosingKind] = {"copying": "copy", "rehearsing": "replay"}
_MOST_PER_MOVE = 5
_MOST_MISSES = 2
_COPY_SHARE = 0.5


class Strike(NamedTuple):
    """Hit ``victim`` ``after_s`` seconds into ``phase``; undo it ``lasts_s`` seconds later."""

    phase: Phase
    victim: Victim
    after_s: float
    lasts_s: float


class Attack(NamedTuple):
    """What one move has to go through."""

    closing: ClosingKind
    strikes: tuple[Strike, ...]


class Schedule:
    """Draws attacks until enough strikes have hit.

    Args:
        seed: Of all draws.
        longest_s: Most outages last seconds; one in twelve so long.
    """

    def __init__(self, seed: int, longest_s: float) -> None:
        self._random = random.Random(seed)
        self._longest_s = longest_s
        self._pool: list[tuple[Phase, Victim]] = []
        self._misses: Counter[tuple[Phase, Victim]] = Counter()

    def draw(self, most: int) -> Attack:
        """The next move's attack, of at most ``most`` strikes."""
        if not self._pool:
            self._pool = self._shuffled()
        first = self._pool.pop(0)
        closing: ClosingKind = "copy" if self._random.random() < _COPY_SHARE else "replay"
        closing = _ONLY.get(first[0], closing)
        pairs = [first]
        for pair in (*self._pool, *self._again()):
            if len(pairs) >= min(most, _MOST_PER_MOVE):
                break
            if self._fits(pair, pairs, closing):
                pairs.append(pair)
        self._pool = [pair for pair in self._pool if pair not in pairs]
        if len(pairs) < most and any(v in FATAL and p not in _AFTER_COMMIT for p, v in pairs):
            pairs.append(("rolling_back", self._random.choice(_GENTLE)))
        pairs.sort(key=lambda pair: _ORDER.index(pair[0]))
        return Attack(closing, tuple(self._strike(pair) for pair in pairs))

    def put_back(self, missed: Strike) -> None:
        """A strike that found no victim, or whose phase never came, comes again, twice at most."""
        pair = (missed.phase, missed.victim)
        if missed.phase not in PHASES:
            return
        self._misses[pair] += 1
        if self._misses[pair] <= _MOST_MISSES and pair not in self._pool:
            self._pool.append(pair)

    def _shuffled(self) -> list[tuple[Phase, Victim]]:
        pairs = [(phase, victim) for phase in PHASES for victim in VICTIMS]
        self._random.shuffle(pairs)
        return pairs

    def _again(self) -> list[tuple[Phase, Victim]]:
        """Fills a move up: few rare pairs left to hit would leave most of it in peace."""
        return [pair for pair in self._shuffled() if not self._misses[pair]]

    def _fits(
        self, pair: tuple[Phase, Victim], pairs: list[tuple[Phase, Victim]], closing: ClosingKind
    ) -> bool:
        phase, victim = pair
        if _ONLY.get(phase, closing) != closing or phase in {taken for taken, _ in pairs}:
            return False
        fatal = [PHASES.index(p) for p, v in pairs if v in FATAL and p not in _AFTER_COMMIT]
        if victim in FATAL and phase not in _AFTER_COMMIT:
            later = max(PHASES.index(taken) for taken, _ in pairs)
            return not fatal and PHASES.index(phase) > later
        return not fatal or PHASES.index(phase) < min(fatal)

    def _strike(self, pair: tuple[Phase, Victim]) -> Strike:
        phase, victim = pair
        after_s = self._random.choice((0.0, 0.02, 0.1, 0.3, 1.0)) * self._random.random()
        lasts_s = 0.0
        if victim in _LASTING:
            is_long = self._random.random() < 1 / 12
            lasts_s = self._longest_s if is_long else self._random.uniform(0.3, 4.0)
        return Strike(phase, victim, after_s, lasts_s)
