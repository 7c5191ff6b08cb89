"""Ranks that repeat a run whose losses and weights are known, for tests of rehearsals."""

from __future__ import annotations

import dataclasses

import numpy as np

from cloudshift_lab.agent.protocols import RanksView, Restore
from cloudshift_lab.checkpoint import Checkpoint, stage_arrays
from cloudshift_lab.checkpoint.fingerprint import differing
from cloudshift_lab.core.errors import NotFound

from .conftest import Attempt, ManualWorld, ScriptedRanks, SwitchableStore, make_job

STEP_S = 0.5


def loss_of(step: int) -> float:
    return 1.0 / (3.0 + step)


class RepeatingRanks(ScriptedRanks):
    """Every poll ends a step, up to the limit; there they hold, and stage when that is wanted.

    ``wrong_from``: from this step on their losses differ. ``spoils``: what they stage does.
    ``is_stuck``: they end no further step. ``is_silent``: they tell no losses.
    ``stages_after``: how many polls a capture takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrong_from: int | None = None
        self.spoils = False
        self.is_stuck = False
        self.is_silent = False
        self.has_lost_its_copy = False
        self.stages_after = 0
        self._limit: int | None = None
        self._wants = False

    def go(self, restore: Restore, limit: int | None = None) -> None:
        super().go(restore, limit)
        self._limit = limit
        self.view = RanksView(state="running", held_step=restore.step)

    def start(self, restore: Restore | None, *, standby: bool) -> None:
        super().start(restore, standby=standby)
        self._limit, self._wants = None, False
        if restore is not None:
            self.view = RanksView(state="running", held_step=restore.step)

    def limit(self, step: int | None) -> None:
        super().limit(step)
        self._limit = step

    def capture(self) -> None:
        super().capture()
        self._wants = True

    def poll(self) -> RanksView:
        view = self.view
        if view.state not in ("running", "held") or self.is_stuck:
            return view
        at = view.step if view.step is not None else view.held_step
        if at is None:
            return view
        if self._limit is not None and at >= self._limit:
            self.view = dataclasses.replace(view, state="held", held_step=at)
            if self._wants and self.stages_after > 0:
                self.stages_after -= 1
            elif self._wants:
                self._wants = False
                self.view = dataclasses.replace(self.view, staged_step=at)
        else:
            self._do(at + 1)
        return self.view

    def _do(self, step: int) -> None:
        view = self.view
        wrong = self.wrong_from is not None and step >= self.wrong_from
        told = (step, loss_of(step) + (1e-3 if wrong else 0.0))
        first_at = view.first_step_at
        if self._limit is None and first_at is None:
            first_at = 5000.0 + step
        self.view = dataclasses.replace(
            view, state="running", step=step, first_step_at=first_at, step_s=STEP_S,
            losses=() if self.is_silent else (*view.losses, told)[-64:],
        )  # fmt: skip

    def prove(self, step: int, sealed: Checkpoint) -> tuple[str, ...]:
        if self.has_lost_its_copy:
            raise NotFound(f"rank 0 has no staged step {step} any more; the next save will do")
        value = step + (0.5 if self.spoils else 0.0)
        arrays = {"w": np.full((4, 3), value, dtype=np.float32)}
        return differing([stage_arrays(arrays, step=step)], sealed)


class Standby(Attempt):
    """A target that can rehearse; made again on the same store it is a revived one."""

    ranks: RepeatingRanks

    def __init__(self, world: ManualWorld, source: Attempt, store: SwitchableStore) -> None:
        job = make_job(2, standby=True, store_url=store.url, source_url=source.store.url)
        ranks = RepeatingRanks()
        super().__init__(world, store, job, source.store, ranks=ranks, prove=ranks.prove)

    def revived(self, source: Attempt) -> Standby:
        """Its agent and ranks died; the engine starts both again."""
        again = Standby(self.world, source, self.store)
        again._orders = self._orders
        return again


def train(source: Attempt, step: int, *, staged: int | None = None, silent: bool = False) -> None:
    """The source has done this step, and says so."""
    losses = () if silent else tuple((s, loss_of(s)) for s in range(max(1, step - 63), step + 1))
    source.ranks.view = RanksView(
        state="running", step=step, loss=loss_of(step), first_step_at=source.world.time,
        last_step_at=source.world.time, staged_step=staged, losses=losses,
    )  # fmt: skip
    source.tick(10)


def seal_at(source: Attempt, step: int) -> str:
    """The source is drained after this step; the digest of its manifest."""
    losses = tuple((s, loss_of(s)) for s in range(max(1, step - 63), step + 1))
    source.order("drain")
    source.tick()
    source.ranks.view = RanksView(
        state="drained", step=step, last_step_at=source.world.time, staged_step=step,
        staged_last=True, losses=losses,
    )  # fmt: skip
    source.tick()
    sealed = source.log.sync().last_commit
    assert sealed is not None and sealed.step == step
    return str(sealed.manifest_digest)
