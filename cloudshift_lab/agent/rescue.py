"""After a rank's death: have the survivors stage the newest step that is whole, then end them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloudshift_lab.core.rescue import OwnPage, RescueWord, Standing, call_file
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World

SETTLE_S = 0.1
STEPPING_S = 1.0
HOPELESS_S = 0.5
PATIENCE_S = 3.0


@dataclass(frozen=True)
class RescuePlan:
    """The newest step that the survivors can stage together, and who stages which ranks' shares."""

    step: int
    stagers: Mapping[int, tuple[int, ...]]


def plan_rescue(
    standings: Mapping[int, Standing | None], dead: Collection[int]
) -> RescuePlan | None:
    """The newest step of which every rank's share can be staged; None when there is none.

    A survivor stages its own share of the step it has completed, and those of ranks that are dead
    or a step apart if it holds their part of the model too. What only a rank has (its randomness,
    its extras) must be known from its page.

    Args:
        standings: Every rank's; None for one that has no page yet.
        dead: Ranks that cannot stage anything any more.
    """
    known = {rank: standing for rank, standing in standings.items() if standing is not None}
    if len(known) < len(standings) or not all(one.is_able for one in known.values()):
        return None
    alive = {r: s for r, s in known.items() if r not in dead and not s.is_stepping}
    steps = {s.completed for s in alive.values() if s.completed is not None}
    for step in sorted(steps, reverse=True):
        if all(one.has_own(step) for one in known.values()):
            plan = _deal(step, known, [r for r in sorted(alive) if alive[r].completed == step])
            if plan is not None:
                return plan
    return None


def _deal(step: int, known: Mapping[int, Standing], stagers: list[int]) -> RescuePlan | None:
    work: dict[int, list[int]] = {rank: [rank] for rank in stagers}
    for rank in sorted(known.keys() - work.keys()):
        able = [stager for stager in stagers if rank in known[stager].covers]
        if not able:
            return None
        work[min(able, key=lambda stager: len(work[stager]))].append(rank)
    return RescuePlan(step, {stager: tuple(ranks) for stager, ranks in work.items()})


class Rescue:
    """Watches the ranks of one start, and leads their rescue.

    It waits for nobody longer than ``PATIENCE_S``: what is staged by then is what there is.

    Args:
        node_dir: Where the ranks' pages are.
        ranks: All ranks of the job, which are of this node.
        world: Clock.
    """

    def __init__(self, node_dir: Path, ranks: range, world: World) -> None:
        self._node_dir = node_dir
        self._ranks = ranks
        self._world = world
        self._pages: dict[int, OwnPage] = {}
        self._processes: dict[int, int] = {}
        self._began: float | None = None
        self._seen: tuple[dict[int, Standing | None], float] = ({}, 0.0)
        self._plan: RescuePlan | None = None
        self.ended_at: float | None = None
        self.first_dead: frozenset[int] = frozenset()

    @staticmethod
    def is_possible() -> bool:
        """Whether this system tells of a process's end at once."""
        return sys.platform == "linux" and hasattr(os, "pidfd_open")

    def dead(self) -> set[int]:
        """Ranks whose process has ended, however that was."""
        self._find()
        poll = select.poll()
        owner = {descriptor: rank for rank, descriptor in self._processes.items()}
        for descriptor in owner:
            poll.register(descriptor, select.POLLIN)
        ended = {owner[descriptor] for descriptor, _ in poll.poll(0)} if owner else set()
        return ended | {rank for rank, descriptor in self._processes.items() if descriptor < 0}

    def is_over(self, dead: Collection[int], staged: int | None) -> bool:
        """Lead on; whether all is staged that can be.

        Args:
            dead: Ranks that are dead now.
            staged: The newest step that all ranks have staged.
        """
        now = self._world.monotonic()
        if self._began is None:
            self._began = now
            self.first_dead = frozenset(dead)
        if self._plan is not None and staged is not None and staged >= self._plan.step:
            return True
        waited_s = now - self._began
        if waited_s > PATIENCE_S:
            return True
        standings = {rank: self._standing(rank) for rank in self._ranks}
        if not self._have_settled(standings, dead, now, waited_s):
            return False
        plan = plan_rescue(standings, dead)
        if plan is None:
            return waited_s > HOPELESS_S
        if plan != self._plan:
            self._plan = plan
            for rank, work in plan.stagers.items():
                self._call(rank, RescueWord(plan.step, work))
        return False

    def end_ranks(self) -> None:
        """Kill what still runs, so that the launcher, whose own patience is long, ends too."""
        if self.ended_at is None:
            self.ended_at = self._world.monotonic()
            for descriptor in self._processes.values():
                if descriptor >= 0:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in self._processes.values():
            if descriptor >= 0:
                os.close(descriptor)
        self._processes.clear()

    def _have_settled(
        self, standings: dict[int, Standing | None], dead: Collection[int], now: float,
        waited_s: float,
    ) -> bool:  # fmt: skip
        """Whether survivors that were still on their way have arrived where they will stay."""
        if standings != self._seen[0]:
            self._seen = (standings, now)
        alive = [one for rank, one in standings.items() if one is not None and rank not in dead]
        if any(one.is_stepping for one in alive) and waited_s < STEPPING_S:
            return False
        return now - self._seen[1] >= SETTLE_S

    def _find(self) -> None:
        for rank in self._ranks:
            if rank in self._processes:
                continue
            page = OwnPage.open(self._node_dir, rank)
            if page is not None:
                self._pages[rank] = page
                self._processes[rank] = _process_of(page.standing().pid)

    def _standing(self, rank: int) -> Standing | None:
        page = self._pages.get(rank)
        return None if page is None else page.standing()

    def _call(self, rank: int, word: RescueWord) -> None:
        """Tell a rank; one that does not listen any more will not stage anything."""
        with contextlib.suppress(OSError):
            pipe = os.open(call_file(self._node_dir, rank), os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, to_json(word) + b"\n")
            finally:
                os.close(pipe)


def _process_of(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 if it has ended already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
