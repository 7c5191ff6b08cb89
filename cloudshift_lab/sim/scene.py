"""Stores, machines and conductor of one simulated history of moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.effects import MoveEffects, Patience
from cloudshift_lab.core.errors import StaleDecision
from cloudshift_lab.core.plan import Plan, Verdict
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Saga
from cloudshift_lab.sim.collector import Collector, Tidying
from cloudshift_lab.sim.faulty_store import FaultRates, FaultyStore, Mutation
from cloudshift_lab.sim.fleet import SimEngine
from cloudshift_lab.sim.judge import Judge
from cloudshift_lab.sim.mischief import Mischief, MischiefRates
from cloudshift_lab.sim.plans import sample_decision
from cloudshift_lab.sim.ranks import Script
from cloudshift_lab.sim.scheduler import Scheduler, SimWorld, derived_random
from cloudshift_lab.sim.watch import Violation
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store

RUN_ID = "run-1"
CLOUDS = ("aws-sim", "gcp-sim")
CALM_AT_S = 150.0
HORIZON_S = 1_500.0
CONDUCTOR_TICK_S = 1.0
_STORE_RATES = FaultRates(
    before=0.01, after=0.01, late=0.008, full=0.001, outage=0.0015, create=5.0, calm_at_s=CALM_AT_S
)
_CONDUCTOR_RATES = MischiefRates(crash=0.01, freeze=0.002, freeze_s=40.0, calm_at_s=CALM_AT_S)
_AGENT_RATES = MischiefRates(crash=0.0003, freeze=0.0006, freeze_s=60.0, calm_at_s=CALM_AT_S)
_PATIENCE = Patience(
    limits_s={
        "provision": 60.0, "precopy": 60.0, "drain": 60.0, "copy": 60.0, "verify": 60.0,
        "commit": 30.0, "go": float("inf"), "retire": 20.0, "cancel": float("inf"),
        "resume": 60.0, "release": 20.0,
    },
    silence_s=30.0,
    stop_grace_s=5.0,
)  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """What a planted bug replaces; see ``plants``."""

    engine: type[SimEngine] = SimEngine
    effects: type[MoveEffects] = MoveEffects
    collector: type[Collector] = Collector


@dataclass
class MoveHistory:
    """What one seed did."""

    seed: int
    digest: str = ""
    phases: list[str] = field(default_factory=list)
    injected_faults: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    switches: int = 0
    violations: list[Violation] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


class SimJournal:
    """A journal that outlives its conductor; keeping an event is a moment in which it can die."""

    def __init__(self, scheduler: Scheduler, mischief: Mischief) -> None:
        self._scheduler = scheduler
        self._mischief = mischief
        self._events: list[bytes] = []

    def append(self, event: bytes) -> None:
        self._mischief.yielded("journal")
        self._scheduler.pause(0.005)
        self._events.append(event)
        self._scheduler.trace(f"journal {event.decode()[:60]}")
        self._mischief.yielded("journalled")
        self._scheduler.pause(0.005)

    def replay(self) -> tuple[bytes, ...]:
        return tuple(self._events)


@dataclass
class Move:
    """One migration as the director knows it."""

    plan: Plan
    source: JobSpec
    target: JobSpec
    journal: SimJournal
    saga: Saga | None = None
    abort_at: float | None = None
    click_at: float | None = None
    verdict: Verdict = "approve"


class Scene:
    """Stores, machines, conductor and director of one history."""

    def __init__(self, seed: int, bug: Bug) -> None:
        self.history = MoveHistory(seed)
        self.bug = bug
        self.random = derived_random(seed, "director")
        self.scheduler = Scheduler(seed, horizon_s=HORIZON_S)
        self.mischief = Mischief(self.scheduler, _CONDUCTOR_RATES)
        self.inner = {f"memory://{cloud}": MemoryStore(f"memory://{cloud}") for cloud in CLOUDS}
        self.judge = Judge(RUN_ID, self.inner, self.report)
        self.stores = {cloud: self._store(f"memory://{cloud}") for cloud in CLOUDS}
        short = self.random.random() < 0.1
        self.script = Script(
            total_steps=self.random.randrange(20, 60) if short else 1_000_000,
            fail=0.3 if self.random.random() < 0.15 else 0.0,
        )
        self.engine = bug.engine(
            self.scheduler, self.open_store,
            mischief=self.mischief, rates=_AGENT_RATES, script=self.script,
            executed=self._executed, lost=self.judge.lost,
        )  # fmt: skip
        self.tidying = Tidying(self.scheduler, self.mischief, RUN_ID, collector_type=bug.collector)
        self.move: Move | None = None
        self.jobs: dict[int, JobSpec] = {}
        self._conductor_lives = 0

    def open_store(self, cloud: str, url: str | None = None) -> Store:
        """The faulty store of a cloud; ``url`` must be its."""
        store = self.stores[cloud]
        assert url in (None, store.url), f"{url} is not the store of {cloud}"
        return store

    def report(self, invariant: str, detail: str) -> None:
        """Keep a violation and end the history: what follows it would only be noise."""
        clock_s = self.scheduler.clock_s
        self.history.violations.append(Violation(self.history.seed, invariant, detail, clock_s))
        self.scheduler.trace(f"VIOLATION {invariant}: {detail}")
        self.scheduler.stop()

    def start_conductor(self) -> None:
        """A conductor process; it comes back a while after it was killed."""
        self._conductor_lives += 1
        name = f"conductor.{self._conductor_lives}"
        actor = self.scheduler.spawn(name, lambda: self._conduct(name))
        self.mischief.watch_over(actor, self._restart_conductor)

    def _restart_conductor(self) -> None:
        self.scheduler.call_later(self.random.random() * 40.0, self.start_conductor)

    def _store(self, url: str) -> FaultyStore:
        return FaultyStore(
            self.inner[url], self.scheduler, _STORE_RATES,
            watch=self._see, yielded=self.mischief.yielded,
        )  # fmt: skip

    def _see(self, mutation: Mutation) -> None:
        before = self.judge.log.handed_over
        self.judge.see(mutation)
        after = self.judge.log.handed_over
        if after is not None and after is not before and self.judge.log.commits:
            self.judge.sealed_is_newest(self.judge.log.commits[-1][1].step or 0)
            self._check_heir()

    def _check_heir(self) -> None:
        """A run must not be given to a target that has long said that it has failed."""
        assert self.move is not None
        ended_s = self.engine.ended_for_s(self.move.target.generation)
        if ended_s > 5.0:
            self.report("a run is given to the living", f"the target ended {ended_s:.0f} s ago")

    def _executed(self, job: JobSpec, step: int, weights: object) -> None:
        self.history.steps += 1
        self.scheduler.trace(f"step {step} by g{job.generation}")
        self.judge.executed(job, step, weights)  # type: ignore[arg-type]

    def _conduct(self, name: str) -> None:
        """The loop of the daemon, for the one move there is."""
        world = SimWorld(self.scheduler, name)
        move = self.move
        assert move is not None
        driver = self._driver(move, world)
        while not driver.saga.is_final:
            self._ask(move, driver, world.monotonic())
            if not driver.tick():
                world.sleep(CONDUCTOR_TICK_S)
            if move.saga != driver.saga:
                move.saga = driver.saga
                self.scheduler.trace(f"phase {driver.saga.phase} {driver.saga.error or ''}")
        move.saga = driver.saga

    def _ask(self, move: Move, driver: MigrationDriver, now: float) -> None:
        """Clicks that came in: twice the same, one on a stale tab, or calling it off."""
        if move.abort_at is not None and now > move.abort_at:
            move.abort_at = None
            driver.abort("the run is being stopped")
        if move.click_at is None or now < move.click_at:
            return
        decision = sample_decision(move.plan, move.verdict)
        try:
            driver.decide(decision)
            driver.decide(decision)
        except StaleDecision:
            move.click_at = None
            return
        move.click_at = None
        try:
            driver.decide(sample_decision(move.plan, "reject", decision_id="stale-tab"))
        except StaleDecision:
            return
        self.report("a decision is taken once", "a second, other decision was accepted")

    def _driver(self, move: Move, world: World) -> MigrationDriver:
        engine: Engine = self.engine
        effects = self.bug.effects(
            move.source, move.target, engine, self.open_store, world, patience=_PATIENCE
        )
        return MigrationDriver.propose(move.plan, move.journal, effects, world)
