"""Ranks, a saver and a clock that do what a test tells them, around the production node agent."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest

from cloudshift_lab.agent.node import NodeAgent
from cloudshift_lab.agent.protocols import RanksView, Restore, Saved, SaveFailed
from cloudshift_lab.checkpoint import seal, stage_arrays, write_rank
from cloudshift_lab.core.errors import Exhausted, Unavailable
from cloudshift_lab.core.orders import (
    AgentStatus,
    Order,
    OrderKind,
    OrderResult,
    inbox_key,
    status_key,
)
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.log import LogBase, LogRecord, RunLog
from cloudshift_lab.storage.memory import MemoryStore


class ManualWorld:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._ids = count()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def random(self) -> float:
        return random.random()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._ids)}"


class SwitchableStore(MemoryStore):
    """A memory store that can be cut off, or in part be full or damage what it takes."""

    is_down = False
    lost_part = ""
    full_part = ""
    damaged_part = ""

    def __init__(self, url: str = "memory://") -> None:
        super().__init__(url)
        self.reads: list[str] = []

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        self.reads.append(key)
        self._refuse_if_down(key)
        return super().get(key, start=start, end=end)

    def put(self, key: str, data: bytes) -> None:
        self._refuse_if_down(key)
        if self.damaged_part and self.damaged_part in key:
            data = bytes(data[:-1]) + bytes([data[-1] ^ 1])
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._refuse_if_down(key)
        self._refuse_if_full(key)
        return super().create(key, data)

    def _refuse_if_down(self, key: str) -> None:
        if self.is_down or (self.lost_part and self.lost_part in key):
            raise Unavailable("the store is cut off; wait")

    def _refuse_if_full(self, key: str) -> None:
        if self.full_part and self.full_part in key:
            raise Exhausted("the store is full; free space")


@dataclass
class ScriptedRanks:
    """Shows what a test sets, and remembers what it was told."""

    view: RanksView = field(default_factory=RanksView)
    told: list[str] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    is_slow_to_start: bool = False

    def start(self, restore: Restore | None, *, standby: bool) -> None:
        where = "standby" if standby else f"from {restore.step if restore else 'scratch'}"
        self.told.append(f"start {where}")
        is_slow = self.is_slow_to_start
        self.view = RanksView(state="starting" if is_slow else "gate" if standby else "running")

    def restart(self) -> None:
        self.told.append("restart")
        self.view = RanksView(state="starting", staged_step=self.view.staged_step)

    def go(self, restore: Restore | None, limit: int | None = None) -> None:
        where = "scratch" if restore is None else f"{restore.step}"
        self.told.append(f"go {where}" + ("" if limit is None else f" up to {limit}"))
        self.view = RanksView(state="running")

    def limit(self, step: int | None) -> None:
        self.told.append(f"limit {step}")

    def request_drain(self) -> None:
        self.told.append("drain")

    def capture(self) -> None:
        self.told.append("capture")

    def release(self, step: int) -> None:
        self.released.append(step)

    def poll(self) -> RanksView:
        return self.view

    def kill(self) -> None:
        self.told.append("kill")
        self.view = RanksView()


class InlineSaver:
    """Saves a small real step within ``start``; fails as often as it is told."""

    def __init__(self, store: MemoryStore, job: JobSpec) -> None:
        self._store = store
        self._job = job
        self._outcome: Saved | SaveFailed | None = None
        self.failures: list[SaveFailed] = []
        self.started: list[int] = []
        self.standalone: list[int] = []
        self.learned: list[str] = []
        self.abandoned = 0
        self.is_slow = False
        self.closed = False

    @property
    def busy(self) -> bool:
        return self._outcome is not None

    def start(self, step: int, *, standalone: bool = False) -> None:
        self.started.append(step)
        if standalone:
            self.standalone.append(step)
        if self.failures:
            self._outcome = self.failures.pop(0)
        else:
            self._outcome = save_step(self._store, self._job.run_id, step, self._job.generation)

    def poll(self) -> Saved | SaveFailed | None:
        if self.is_slow:
            return None
        outcome, self._outcome = self._outcome, None
        return outcome

    def abandon(self) -> None:
        self.abandoned += 1
        self.is_slow = False
        self._outcome = SaveFailed(self.started[-1], "Conflict", "it gave way")

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        self.learned.append(manifest_digest)

    def close(self) -> None:
        self.closed = True


def save_step(store: MemoryStore, run_id: str, step: int, generation: int) -> Saved:
    """Store a real, tiny step."""
    arrays = {"w": np.full((4, 3), step, dtype=np.float32)}
    written = write_rank(store, run_id, stage_arrays(arrays, step=step), generation=generation)
    sealed = seal(store, run_id, step, generation=generation, world_size=1, written=[written])
    return Saved(
        step, sealed.manifest_key, sealed.manifest_digest,
        sealed.raw_bytes, sealed.stored_bytes, written.new_bytes,
    )  # fmt: skip


class Attempt:
    """One agent under test with everything around it."""

    def __init__(
        self, world: ManualWorld, store: SwitchableStore, job: JobSpec,
        source: MemoryStore | None = None, *, ranks: ScriptedRanks | None = None,
        **parts: object,
    ) -> None:  # fmt: skip
        self.world = world
        self.store = store
        self.job = job
        self.log = RunLog(store, job.run_id, world)
        self.ranks = ranks or ScriptedRanks()
        self.saver = InlineSaver(store, job)
        self.agent = NodeAgent(
            job, store=store, source_store=source, world=world, ranks=self.ranks, saver=self.saver,
            **parts,  # type: ignore[arg-type]
        )  # fmt: skip
        self._orders = 0

    def tick(self, times: int = 4) -> AgentStatus:
        """Let some time pass; the newest published status."""
        for _ in range(times):
            self.agent.tick()
            self.world.time += 0.25
        return self.published

    @property
    def published(self) -> AgentStatus:
        key = status_key(self.job.run_id, self.job.generation)
        return from_json(self.store.get(key), AgentStatus)

    def order(
        self, kind: OrderKind, *, step: int | None = None, digest: str | None = None,
        order_id: str | None = None, at: float | None = None, **more: object,
    ) -> str:  # fmt: skip
        """Put an order into the inbox; given now unless ``at`` says when."""
        name, at = order_id or f"{kind}-{self._orders}", self.world.time if at is None else at
        order = Order(
            order_id=name, kind=kind, at=at, step=step, manifest_digest=digest,
            **more,  # type: ignore[arg-type]
        )  # fmt: skip
        key = inbox_key(self.job.run_id, self.job.generation, self._orders)
        assert self.store.create(key, to_json(order))
        self._orders += 1
        return name

    def result(self, order_id: str) -> OrderResult:
        return self.published.results[order_id]

    def run_to(self, step: int, *, staged: int | None = None) -> None:
        """The ranks have finished ``step`` and perhaps staged one."""
        self.ranks.view = RanksView(
            state="running", step=step, loss=1.0 / step, first_step_at=self.world.time,
            last_step_at=self.world.time, staged_step=staged,
        )  # fmt: skip

    def drain_to(self, step: int) -> None:
        """The ranks have stopped after ``step`` and staged it."""
        self.ranks.view = RanksView(
            state="drained", step=step, last_step_at=self.world.time, staged_step=step,
            staged_last=True,
        )  # fmt: skip


def make_job(generation: int = 1, **changes: object) -> JobSpec:
    fields: dict[str, object] = {
        "run_id": "run-a",
        "generation": generation,
        "owner": f"owner-{generation}",
        "placement": Placement("local", "here", "this-machine", ranks_per_node=1),
        "store_url": "memory://source",
        "script": "train.py",
        "home": "/nowhere",
        "workdir": "/nowhere",
        "save_policy": "10",
        "seed": 0,
    }
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]


def hand_over(source: Attempt, target: Attempt, digest: str, *, carries_over: bool = True) -> None:
    """What the conductor's commit does; the sealed step is carried over unless it was replayed."""
    landed = source.log.handover(
        generation=source.job.generation, to_url=target.store.url, new_owner=target.job.owner,
        migration_id="move-1", nonce="handover",
    )  # fmt: skip
    base = LogBase(source.store.url, landed.seq, landed.digest)
    target.log.acquire(
        generation=target.job.generation, owner=target.job.owner, nonce="acquire", base=base
    )
    if not carries_over:
        return
    sealed = commit_with(source, digest)
    target.log.commit(
        generation=target.job.generation, step=sealed.step or 0,
        manifest_key=str(sealed.manifest_key), manifest_digest=digest, nonce="carry-over",
    )  # fmt: skip


def commit_with(attempt: Attempt, digest: str) -> LogRecord:
    commits = attempt.log.sync().commits
    return next(record for record in commits if record.manifest_digest == digest)


@pytest.fixture
def world() -> ManualWorld:
    return ManualWorld()


@pytest.fixture
def source(world: ManualWorld) -> Attempt:
    """An owner's agent, not ticked yet."""
    return Attempt(world, SwitchableStore("memory://source"), make_job())


@pytest.fixture
def target(world: ManualWorld, source: Attempt) -> Attempt:
    """A standby's agent with a store of its own, not ticked yet."""
    job = make_job(2, standby=True, store_url="memory://target", source_url="memory://source")
    return Attempt(world, SwitchableStore("memory://target"), job, source.store)
