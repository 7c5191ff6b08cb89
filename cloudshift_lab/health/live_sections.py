"""Slow ranks of a run as it goes on: rows of single ranks become whole steps for the watch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cloudshift_lab.core.step_rows import Floats
from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.straggler import StragglerWatch

WAITING = (
    "wait_for", "collective", "sync", "barrier", "backward", "save", "ckpt", "checkpoint", "eval",
    "step_with",
)  # fmt: skip
"""Sections with these in their names hold time that ranks spend on each other, or not on steps."""
_WHOLE = "step"
_LATE_STEPS = 20


class SectionWatch:
    """Puts the times of ranks together step by step, and remembers who is slow.

    Without sections only the run as a whole is judged: all ranks of a synchronous run end a step
    together, whoever was late.

    Args:
        ranks_per_node: Neighbours in rank order that share a node.
    """

    def __init__(self, ranks_per_node: int) -> None:
        self._per_node = ranks_per_node
        self._steps: dict[int, dict[int, tuple[float, ...]]] = {}
        self._names: tuple[str, ...] = ()
        self._num_ranks = 0
        self._watch: StragglerWatch | None = None
        self._found: dict[str, Finding] = {}
        self._num_judged = 0

    def take(
        self, step: int, rank: int, step_s: float, sections_s: Mapping[str, float], *,
        num_ranks: int,
    ) -> None:  # fmt: skip
        """Take in one rank's times of one step; judge the steps that are whole by it."""
        own_s = {
            name: seconds
            for name, seconds in sections_s.items()
            if seconds == seconds and not any(word in name for word in WAITING)
        }
        if not own_s:
            if self._names not in ((), (_WHOLE,)):
                return  # the others tell theirs: such a step cannot be compared
            own_s = {_WHOLE: step_s}
        if not set(own_s) <= set(self._names):
            self._begin(set(own_s))
        self._steps.setdefault(step, {})[rank] = tuple(own_s.get(name, 0.0) for name in self._names)
        if num_ranks != self._num_ranks:
            self._num_ranks, self._watch, self._num_judged = num_ranks, None, 0
            self._found.clear()
        self._judge()

    def _begin(self, names: set[str]) -> None:
        """Sections that were not known: what was before cannot be compared with them."""
        self._names = tuple(sorted({*names, *self._names} - {_WHOLE})) or (_WHOLE,)
        self._steps.clear()
        self._watch = None
        self._num_judged = 0
        self._found.clear()

    def _judge(self) -> None:
        if self._num_ranks < 2:
            self._steps.clear()
            return
        for step in sorted(self._steps):
            ranks = self._steps[step]
            if len(ranks) < self._num_ranks:
                if max(self._steps) - step > _LATE_STEPS:
                    del self._steps[step]
                    continue
                return
            del self._steps[step]
            self._observe(step, np.array([ranks[rank] for rank in sorted(ranks)]).T)

    def _observe(self, step: int, times_s: Floats) -> None:
        if self._watch is None:
            self._watch = StragglerWatch(self._names, self._num_ranks, self._per_node)
        self._num_judged += 1
        for finding in self._watch.observe(step, times_s):
            self._found[finding.key] = finding

    def standing(self) -> tuple[Finding, ...]:
        """Who is slow now, as it was said when they became so."""
        if self._watch is None:
            return ()
        watch = self._watch
        slow = {f"straggler.degrading/rank/{rank}" for rank in watch.degrading}
        slow |= {f"straggler.rank/rank/{rank}" for rank in watch.stragglers}
        slow |= {f"straggler.node/node/{node}" for node in watch.slow_nodes}
        slow |= {"slowdown.run/run/run"} if watch.is_slow else set()
        if self._names == (_WHOLE,):
            slow &= {"slowdown.run/run/run"}
        self._found = {key: each for key, each in self._found.items() if key in slow}
        return tuple(each for key, each in sorted(self._found.items()) if not self._is_less(key))

    def _is_less(self, key: str) -> bool:
        """A rank that is a straggler need not be called degrading too."""
        return key.replace("degrading", "rank") in self._found and "degrading" in key

    def seen(self) -> str:
        """What was there to judge by."""
        if self._num_ranks < 2:
            return "one rank has nobody to be compared with"
        if self._names == (_WHOLE,):
            return (
                f"{self._num_judged} steps as wholes: ranks are told apart by "
                'session.section("forward") only'
            )
        judging = "" if self._watch is not None and self._watch.is_judging else ", first baseline"
        return f"{self._num_judged} steps by {', '.join(self._names)}{judging}"
