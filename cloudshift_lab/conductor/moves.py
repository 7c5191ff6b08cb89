"""One move of one run: its saga driven, its attempts billed, its receipt written."""

from __future__ import annotations

import threading
from pathlib import Path

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.effects import MoveEffects
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.places import Places
from cloudshift_lab.conductor.pricing import actual_micro_usd
from cloudshift_lab.conductor.receipts import Receipts
from cloudshift_lab.conductor.records import (
    AttemptEnded,
    AttemptStarted,
    MoveOpened,
    RunRecord,
)
from cloudshift_lab.core.plan import Phase, Plan
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Saga
from cloudshift_lab.storage.store import Store

_EVENTS_PER_TICK = 20
_FINISH_AGAIN_S = 20.0
_NEVER_BEGAN: frozenset[Phase] = frozenset({"rejected", "expired"})


class Surroundings:
    """What every run of one conductor shares.

    Args:
        root: State directory.
        places: Clouds and their stores.
        engine: Where agents run.
        world: Clock.
    """

    def __init__(self, root: Path, places: Places, engine: Engine, world: World) -> None:
        self.root = root
        self.places = places
        self.engine = engine
        self.world = world

    def run_folder(self, run_id: str) -> Path:
        """Where everything about a run is kept."""
        return self.root / "runs" / run_id


class Move:
    """One migration of one run. ``tick`` is for one thread at a time.

    Args:
        opened: The run journal's line about it.
        record: The run.
        around: What the conductor shares.
        lock: Guards the run's record and this saga.
        plan: Given when the move is new; it is then kept before anything else.
    """

    def __init__(
        self,
        opened: MoveOpened,
        record: RunRecord,
        around: Surroundings,
        *,
        lock: threading.RLock,
        plan: Plan | None = None,
    ) -> None:
        self.opened = opened
        self._record = record
        self._around = around
        self._lock = lock
        self._finish_at = float("-inf")
        folder = around.run_folder(record.run_id)
        self._receipts = Receipts(folder / "receipts", record.run_id)
        journal = Journal(journal_path(folder, opened.migration_id))
        if plan is None:
            plan = MigrationDriver.plan_in(journal)
        source = record.attempts[plan.generation].job
        effects = MoveEffects(
            source, opened.target_job, around.engine, around.places.store, around.world
        )
        self.driver = MigrationDriver.propose(plan, journal, effects, around.world, lock=lock)

    @property
    def saga(self) -> Saga:
        return self.driver.saga

    @property
    def plan(self) -> Plan:
        return self.driver.saga.plan

    @property
    def is_open(self) -> bool:
        """A decision or an effect is still to come."""
        return not self.saga.is_final

    @property
    def is_under_way(self) -> bool:
        """Between its decision and its end: the saga alone judges both attempts now."""
        return self.is_open and self.saga.phase != "proposed"

    @property
    def is_done(self) -> bool:
        """Nothing is left to do, not even sending the receipt."""
        return self.saga.is_final and (
            self.saga.phase in _NEVER_BEGAN or self.receipt_key() is not None
        )

    def receipt_key(self) -> str | None:
        """Where the receipt lies in the bucket, once it does."""
        return self._receipts.sent_key(self.opened.migration_id)

    def tick(self) -> bool:
        """Push the move on; True when something changed.

        Raises:
            Exhausted: A journal's disk is full; nothing is lost, tick again.
        """
        changed = False
        for _ in range(_EVENTS_PER_TICK):
            self._bill_target()
            if not self.driver.tick():
                break
            changed = True
        now = self._around.world.monotonic()
        if self.saga.is_final and not self.is_done and now >= self._finish_at:
            self._finish_at = now + _FINISH_AGAIN_S
            self._finish()
            changed = True
        return changed

    def _bill_target(self) -> None:
        """The target costs money from before it is asked for: the journal knows it first."""
        if self.saga.effect != "provision":
            return
        with self._lock:
            if self.opened.target_job.generation not in self._record.attempts:
                self._record.keep(self._attempt())

    def _attempt(self) -> AttemptStarted:
        opened = self.opened
        return AttemptStarted(
            job=opened.target_job,
            at=self._around.world.now(),
            price_micro_usd_per_h=opened.price_micro_usd_per_h,
            price_source=opened.price_source,
            simulated=opened.simulated,
            migration_id=opened.migration_id,
        )

    def _finish(self) -> None:
        """End the attempt that lost its place; write the receipt and send it."""
        saga = self.saga
        loser = self._loser(saga.phase)
        with self._lock:
            if loser is not None and self._costs(loser):
                self._record.keep(AttemptEnded(generation=loser, at=saga.timeline[-1].at))
        if saga.phase in _NEVER_BEGAN:
            return
        clouds = {cloud.name: cloud for cloud in self._around.places.clouds().clouds}
        actual = actual_micro_usd(
            saga, clouds, target_micro_usd_per_h=self.opened.price_micro_usd_per_h
        )
        self._receipts.write(saga, at=self._around.world.now(), actual_micro_usd=actual)
        self._receipts.send(self.opened.migration_id, self._home_store())

    def _home_store(self) -> Store:
        plan = self.plan
        if self.saga.is_committed:
            return self._around.places.store(plan.target.cloud, plan.target_url)
        return self._around.places.store(plan.source.cloud, plan.source_url)

    def _loser(self, phase: Phase) -> int | None:
        if phase == "source_retired":
            return self.plan.generation
        return self.opened.target_job.generation if phase == "rolled_back" else None

    def _costs(self, generation: int) -> bool:
        attempt = self._record.attempts.get(generation)
        return attempt is not None and attempt.ended_at is None


def journal_path(folder: Path, migration_id: str) -> Path:
    """A migration's journal below its run's folder."""
    return folder / "migrations" / f"{migration_id}.jsonl"


def target_job(
    source: JobSpec, plan: Plan, *, generation: int, workdir: Path, owner_id: str
) -> JobSpec:
    """The standby job that a move starts at its target; ``owner_id`` is used once in the world."""
    return JobSpec(
        run_id=source.run_id,
        generation=generation,
        owner=f"{source.run_id}:{plan.migration_id}:{owner_id}",
        placement=plan.target,
        store_url=plan.target_url,
        script=source.script,
        home=source.home,
        workdir=str(workdir),
        seed=source.seed,
        save_policy=source.save_policy,
        keep=source.keep,
        args=source.args,
        env=source.env,
        python=source.python,
        standby=True,
        source_cloud=plan.source.cloud,
        source_url=plan.source_url,
        conductor_home=source.conductor_home,
    )
