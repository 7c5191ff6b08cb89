"""One random life of a run and its moves: production driver, effects, agents, log and checkpoints.

A director starts the run, proposes a move, decides on it (or not), sometimes takes the run over
from an owner that sleeps, and at the end looks whether exactly one owner trains. Everything
between is the production code on simulated stores, ranks and machines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.effects import MoveEffects, Patience
from cloudshift_lab.core.errors import CloudshiftError, StaleDecision
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Plan, Verdict
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Saga
from cloudshift_lab.sim.faulty_store import CALM, FaultRates, FaultyStore, Mutation
from cloudshift_lab.sim.fleet import TTL_S, SimEngine
from cloudshift_lab.sim.judge import Judge
from cloudshift_lab.sim.mischief import Mischief, MischiefRates
from cloudshift_lab.sim.plans import sample_decision, sample_plan
from cloudshift_lab.sim.ranks import Script
from cloudshift_lab.sim.scheduler import Scheduler, SimWorld, derived_random
from cloudshift_lab.sim.watch import Violation
from cloudshift_lab.storage.lease import LeaseObserver
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
class _Move:
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
        self.move: _Move | None = None
        self.jobs: dict[int, JobSpec] = {}
        self._conductor_lives = 0

    def open_store(self, cloud: str) -> Store:
        """The faulty store of a cloud."""
        return self.stores[cloud]

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

    def _ask(self, move: _Move, driver: MigrationDriver, now: float) -> None:
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

    def _driver(self, move: _Move, world: World) -> MigrationDriver:
        engine: Engine = self.engine
        effects = self.bug.effects(
            move.source, move.target, engine, self.open_store, world, patience=_PATIENCE
        )
        return MigrationDriver.propose(move.plan, move.journal, effects, world)


class Director:
    """The people and the policy around the run: never hurt, never in a hurry."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.random = scene.random
        self.world = SimWorld(scene.scheduler, "director")
        self.generation = 1

    def body(self) -> None:
        """The whole history."""
        scene = self.scene
        self._submit(self._job(1, CLOUDS[0]))
        if not self._wait(lambda: scene.judge.last_step >= 3, 200.0):
            if scene.engine.is_alive(1):
                scene.report("a run starts", "no step within 200 s, and the agent lives")
            scene.scheduler.stop()
            self.world.sleep(0.0)
        self.world.sleep(self.random.random() * 15.0)
        for number in range(self.random.choice([1, 1, 2])):
            if self._is_over():
                break
            self._live_move(number)
        self._end()

    def _live_move(self, number: int) -> None:
        """One proposal, from its plan to its final phase."""
        scene = self.scene
        move = self._propose(number)
        scene.move = move
        draw = self.random.random()
        if draw < 0.1:
            move.abort_at = self.world.monotonic() + self.random.random() * 60.0
        scene.start_conductor()
        if draw < 0.93:
            move.verdict = "reject" if 0.1 <= draw < 0.14 else "approve"
            move.click_at = self.world.monotonic() + self.random.random() * 20.0
        if self.random.random() < 0.15:
            self._take_over()
        is_final = self._wait(lambda: move.saga is not None and move.saga.is_final, 900.0)
        saga = move.saga
        if not is_final or saga is None:
            phase = None if saga is None else (saga.phase, saga.effect, saga.error)
            scene.report("every move ends", f"{move.plan.migration_id} hangs in {phase}")
            return
        scene.history.phases.append(saga.phase)
        self._check_outcome(saga)

    def _check_outcome(self, saga: Saga) -> None:
        """What the saga says must be what the logs say."""
        log = self.scene.judge.log
        handed = any(
            record.kind == "handover" and record.migration_id == saga.plan.migration_id
            for records in log.logs.values()
            for record in records
        )
        if handed != (saga.phase == "source_retired"):
            self.scene.report(
                "the outcome of a move is the log's", f"{saga.phase}, handover in log: {handed}"
            )

    def _propose(self, number: int) -> _Move:
        scene = self.scene
        owner = self._owner_job()
        here = owner.placement.cloud
        there = here if self.random.random() < 0.1 else next(c for c in CLOUDS if c != here)
        now = self.world.now()
        plan = sample_plan(
            f"mig-{number}", run_id=RUN_ID, source_url=owner.store_url,
            target_url=f"memory://{there}", generation=owner.generation,
            created_at=now, expires_at=now + 60.0,
        )  # fmt: skip
        target = msgspec.structs.replace(
            self._job(max(scene.jobs) + 1, there), standby=True, source_cloud=here,
            source_url=owner.store_url,
        )  # fmt: skip
        scene.jobs[target.generation] = target
        return _Move(plan, owner, target, SimJournal(scene.scheduler, scene.mischief))

    def _take_over(self) -> None:
        """An owner sleeps until its lease is over; somebody else takes the run; it wakes."""
        scene = self.scene
        self.world.sleep(self.random.random() * 40.0)
        owner = self._owner_job()
        actor = scene.engine.actor(owner.generation)
        if actor is None or not scene.engine.is_alive(owner.generation) or self._is_over():
            return
        scene.judge.unplanned = True
        scene.scheduler.freeze(actor, 50.0 + self.random.random() * 60.0)
        observer = LeaseObserver(
            scene.open_store(owner.placement.cloud), RUN_ID, owner.generation, self.world, TTL_S
        )
        for _ in range(60):
            self.world.sleep(2.0)
            try:
                if observer.expired():
                    self._restart_here()
                    return
            except CloudshiftError:
                continue

    def _restart_here(self) -> None:
        """A new attempt where the run's log is now, from its last commit."""
        log = self.scene.judge.log
        if log.home_url is None or log.handed_over is not None or log.owner is None:
            return
        cloud = log.home_url.removeprefix("memory://")
        here = [record for url, record in log.commits if url == log.home_url]
        job = msgspec.structs.replace(
            self._job(max(max(self.scene.jobs), log.generation) + 1, cloud),
            restore_step=here[-1].step if here else None,
        )
        self.scene.scheduler.trace(f"restart as g{job.generation} from {job.restore_step}")
        self._submit(job)

    def _end(self) -> None:
        """Everything becomes calm; then one owner must train on, or the run be over."""
        scene = self.scene
        for store in scene.stores.values():
            store.rates = CALM
        scene.mischief.end()
        has_sleepers = scene.judge.unplanned or scene.mischief.freezes > 0
        self.world.sleep(130.0 if has_sleepers else 25.0)  # whoever sleeps wakes up meanwhile
        for _ in range(2):
            if self._is_over():
                break
            owner = self._owner_job()
            if scene.engine.is_alive(owner.generation):
                break
            self._restart_here()
            self.world.sleep(40.0)
        self._check_one_runner()
        scene.scheduler.stop()

    def _check_one_runner(self) -> None:
        scene = self.scene
        runners = self._runners(30.0)
        if self._is_over():
            if runners := self._runners(20.0):
                scene.report("nobody runs after the end", f"{runners}")
            self._check_reason()
            return
        if runners != [scene.judge.log.generation]:
            scene.report(
                "exactly one owner runs at the end",
                f"running {runners}, owner g{scene.judge.log.generation}, "
                f"alive {scene.engine.alive()}",
            )

    def _check_reason(self) -> None:
        """A run ends when all its steps are committed, or when its script failed."""
        script, log = self.scene.script, self.scene.judge.log
        step = log.commits[-1][1].step if log.commits else 0
        if step != script.total_steps and script.fail == 0.0:
            self.scene.report("a run ends for a reason", f"at step {step} of {script.total_steps}")

    def _runners(self, seconds: float) -> list[int]:
        """Generations that execute steps during the next seconds."""
        steps_by = self.scene.judge.steps_by
        before = dict(steps_by)
        self.world.sleep(seconds)
        return [g for g, n in steps_by.items() if n > before.get(g, 0)]

    def _is_over(self) -> bool:
        """The run has ended and was given back."""
        log = self.scene.judge.log
        return bool(log.logs) and log.owner is None and log.handed_over is None

    def _owner_job(self) -> JobSpec:
        generation = self.scene.judge.log.generation
        return self.scene.jobs.get(generation) or self.scene.jobs[max(self.scene.jobs)]

    def _submit(self, job: JobSpec) -> None:
        self.scene.jobs[job.generation] = job
        self.scene.engine.submit(job)

    def _job(self, generation: int, cloud: str) -> JobSpec:
        return JobSpec(
            run_id=RUN_ID, generation=generation, owner=f"owner-{generation}",
            placement=Placement(cloud=cloud, region="r", instance_type="m"),
            store_url=f"memory://{cloud}", script="train.py", home="/", workdir="/",
            checkpoint_every=10, seed=0,
        )  # fmt: skip

    def _wait(self, is_true: object, seconds: float) -> bool:
        assert callable(is_true)
        until = self.world.monotonic() + seconds
        while self.world.monotonic() < until:
            if is_true():
                return True
            self.world.sleep(2.0)
        return bool(is_true())


def run_move_history(seed: int, bug: Bug | None = None) -> MoveHistory:
    """Live one history and judge it.

    Args:
        seed: Decides everything.
        bug: A planted bug; None for the production code as it is.
    """
    scene = Scene(seed, bug or Bug())
    scene.scheduler.spawn("director", Director(scene).body)
    history = scene.history
    try:
        scene.scheduler.run()
    except (CloudshiftError, AssertionError, LookupError, TypeError, ValueError) as error:
        scene.report("nothing breaks", f"{type(error).__name__}: {error}")
    for store in scene.stores.values():
        history.injected_faults.update(store.faults)
    history.injected_faults["freeze"] = scene.mischief.freezes
    history.crashes = scene.mischief.crashes
    history.virtual_s = scene.scheduler.clock_s
    history.switches = scene.scheduler.switches
    history.digest = scene.scheduler.digest()
    history.trace = scene.scheduler.lines
    return history
