"""Agents without ranks: they obey orders through a real store and a real run log, tick by tick."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.core.orders import AgentStatus, Order, OrderResult, inbox_key, status_key
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.engines.engine import Handle, Observation, machine_of
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store


class ManualWorld:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.clock_s = 0.0
        self._ids = 0

    def now(self) -> float:
        return 1_700_000_000.0 + self.clock_s

    def monotonic(self) -> float:
        return self.clock_s

    def sleep(self, seconds: float) -> None:
        self.clock_s += seconds

    def random(self) -> float:
        return 0.5

    def new_id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}-{self._ids:012x}"


@dataclass
class Puppet:
    """One attempt's agent. ``fail`` names order kinds that fail, ``mute`` ones never answered.

    ``fail_as`` is how they fail; ``nodes_up`` of its nodes are there. ``saves_late``: it trains for
    a while before its first commit. ``apart``: how far its rehearsed losses are, and at which step.
    """

    job: JobSpec
    store: Store
    world: ManualWorld
    fail: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    fail_as: str = "Corrupt"
    nodes_up: int | None = None
    saves_late: bool = False
    apart: tuple[float | None, int | None] = (None, None)
    orders: list[Order] = field(default_factory=list)
    is_gone: bool = False
    is_frozen: bool = False
    step: int = 0
    next_order: int = 0
    status: AgentStatus = field(init=False)
    obeyed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = RunLog(self.store, self.job.run_id, self.world)
        state = "standby" if self.job.standby else "running"
        self.status = AgentStatus(
            run_id=self.job.run_id,
            generation=self.job.generation,
            state=state,
            beat=0,
            at=0.0,
            state_bytes=2000,
            stored_bytes=1000,
            step_s=1.0,
        )

    def tick(self) -> None:
        if self.is_gone or self.is_frozen:
            return
        if self.nodes_up is None:
            self.nodes_up = self.job.placement.nodes
        self.status = msgspec.structs.replace(self.status, nodes_up=self.nodes_up)
        if self.status.state == "running":
            self._train()
        self._read_inbox()
        self.say()

    def say(self, **changes: object) -> None:
        changes = {"beat": self.status.beat + 1, "at": self.world.now(), **changes}
        self.status = msgspec.structs.replace(self.status, **changes)
        self.store.put(status_key(self.job.run_id, self.job.generation), to_json(self.status))

    def _train(self) -> None:
        job = self.job
        if self.step == 0 and not job.standby:
            self.log.acquire(generation=job.generation, owner=job.owner, nonce=f"{job.owner}-nonce")
        self.step += 1
        now = self.world.now()
        self.status = msgspec.structs.replace(
            self.status,
            step=self.step,
            first_step_at=self.status.first_step_at or now,
            last_step_at=now,
        )

    def _read_inbox(self) -> None:
        while True:
            try:
                key = inbox_key(self.job.run_id, self.job.generation, self.next_order)
                order = from_json(self.store.get(key), Order)
            except NotFound:
                return
            self.next_order += 1
            self.obeyed.append(order.kind)
            self.orders.append(order)
            if order.kind in self.mute:
                continue
            try:
                result = self._obey(order)
            except CloudshiftError as error:
                result = OrderResult(
                    state="failed", error_kind=type(error).__name__, error=error.message
                )
            results = {**self.status.results, order.order_id: result}
            self.status = msgspec.structs.replace(self.status, results=results)

    def _obey(self, order: Order) -> OrderResult:
        if order.kind in self.fail:
            return OrderResult(state="failed", error_kind=self.fail_as, error="a chunk is corrupt")
        if order.kind == "save":
            return self._save(order)
        if order.kind == "rehearse":
            by, at = self.apart
            return OrderResult(
                state="done", step=self.step, step_s=1.0, detail="equal", apart=by, apart_step=at
            )
        if order.kind == "catch_up":
            return OrderResult(state="done", step=order.step, step_at=self.world.now())
        if order.kind == "drain":
            record = self.log.commit(
                generation=self.job.generation,
                step=self.step,
                manifest_key=f"runs/{self.job.run_id}/steps/{self.step:08d}/manifest.json",
                manifest_digest=f"digest-{self.step}",
                nonce=order.order_id,
                final=True,
            )
            self._become("drained", committed_step=self.step, committed_at=self.world.now())
            return OrderResult(
                state="done", step=record.step, manifest_digest=record.manifest_digest
            )
        if order.kind == "go":
            state = self.log.sync()
            assert (state.generation, state.owner) == (self.job.generation, self.job.owner)
            last = state.last_commit
            if last is None or last.step != order.step:
                assert order.replay
                self._commit_replayed(order)
            self.step = order.step or 0
            self._become("running", committed_step=None if self.saves_late else order.step)
        if order.kind == "resume":
            self._become("running")
        if order.kind in ("retire", "stop"):
            self._become("retired" if order.kind == "retire" else "stopped")
            self.is_gone = True
        carries = order.kind in ("precopy", "copy")
        return OrderResult(
            state="done",
            num_bytes=500 if carries else 0,
            bytes_per_s=2e6 if carries else None,
        )

    def _save(self, order: Order) -> OrderResult:
        record = self.log.commit(
            generation=self.job.generation,
            step=self.step,
            manifest_key=f"runs/{self.job.run_id}/steps/{self.step:08d}/manifest.json",
            manifest_digest=f"digest-{self.step}",
            nonce=order.order_id,
        )
        self.say(committed_step=self.step, committed_at=self.world.now())
        return OrderResult(state="done", step=record.step, manifest_digest=record.manifest_digest)

    def _commit_replayed(self, order: Order) -> None:
        self.log.commit(
            generation=self.job.generation,
            step=order.step or 0,
            manifest_key=f"runs/{self.job.run_id}/steps/{order.step:08d}/manifest.json",
            manifest_digest=str(order.manifest_digest),
            nonce=f"{order.order_id}:first",
        )

    def _become(self, state: str, **changes: object) -> None:
        self.status = msgspec.structs.replace(self.status, state=state, **changes)


class PuppetEngine:
    """An engine whose agents are puppets; ``tick`` moves them all."""

    def __init__(self, open_store: Callable[[str, str], Store], world: ManualWorld) -> None:
        self._open_store = open_store
        self._world = world
        self.puppets: dict[tuple[str, int], Puppet] = {}
        self.prepare: Callable[[Puppet], None] = lambda _: None
        self.refuse: Exception | None = None
        self.started: list[int] = []
        self.revived: list[int] = []

    def tick(self) -> None:
        for puppet in list(self.puppets.values()):
            puppet.tick()

    def submit(self, job: JobSpec) -> Handle:
        if (job.run_id, job.generation) not in self.puppets:
            self._start(job)
        return self._handle(job.run_id, job.generation)

    def revive(self, job: JobSpec) -> Handle:
        self.revived.append(job.generation)
        held = self.puppets.get((job.run_id, job.generation))
        if held is None or held.is_gone:
            self._start(job)
        return self._handle(job.run_id, job.generation)

    def find(self, run_id: str, generation: int) -> Handle | None:
        known = (run_id, generation) in self.puppets
        return self._handle(run_id, generation) if known else None

    def observe(self, handle: Handle) -> Observation:
        is_gone = self.puppets[handle.run_id, handle.generation].is_gone
        return Observation(state="exited" if is_gone else "running")

    def stop(self, handle: Handle, grace_s: float) -> Observation:
        self.puppets[handle.run_id, handle.generation].is_gone = True
        return self.observe(handle)

    def logs(self, handle: Handle, rank: int | None = None, tail: int = 200) -> str:
        return f"log of {handle.run_id} generation {handle.generation} rank {rank}"

    def _start(self, job: JobSpec) -> None:
        if self.refuse is not None:
            raise self.refuse
        puppet = Puppet(job, self._open_store(job.placement.cloud, job.store_url), self._world)
        self.prepare(puppet)
        self.puppets[job.run_id, job.generation] = puppet
        self.started.append(job.generation)

    def _handle(self, run_id: str, generation: int) -> Handle:
        return Handle(
            run_id=run_id, generation=generation, pid=1, start_time="0", workdir="/nowhere",
            machine=machine_of(self.puppets[run_id, generation].job),
        )  # fmt: skip


@dataclass
class TwoClouds:
    """Two stores in memory, an engine of puppets, and a run that trains in the first."""

    world: ManualWorld
    stores: dict[str, Store]
    engine: PuppetEngine

    def open_store(self, name: str) -> Store:
        return self.stores[name]


@pytest.fixture
def world() -> ManualWorld:
    return ManualWorld()


@pytest.fixture
def two_clouds(world: ManualWorld) -> Iterator[TwoClouds]:
    stores: dict[str, Store] = {
        "aws-sim": MemoryStore("memory://aws-sim"),
        "gcp-sim": MemoryStore("memory://gcp-sim"),
    }
    clouds = TwoClouds(world, stores, PuppetEngine(lambda cloud, _url: stores[cloud], world))
    yield clouds


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run-1"
