"""Stores, machines and conductor of one simulated history of moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.effects import MoveEffects
from cloudshift_lab.conductor.sides import Patience
from cloudshift_lab.core.plan import Bill, Plan
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import Effect, EffectDone, EffectFailed, EffectName, Saga
from cloudshift_lab.sim.collector import Collector, Tidying
from cloudshift_lab.sim.faulty_store import FaultRates, FaultyStore, Mutation
from cloudshift_lab.sim.fleet import SimEngine
from cloudshift_lab.sim.judge import Judge
from cloudshift_lab.sim.mischief import Mischief, MischiefRates
from cloudshift_lab.sim.partitions import Partitions
from cloudshift_lab.sim.people import People
from cloudshift_lab.sim.plans import sample_bill
from cloudshift_lab.sim.ranks import Script
from cloudshift_lab.sim.scheduler import Scheduler, SimWorld, derived_random
from cloudshift_lab.sim.watch import Violation
from cloudshift_lab.storage.log import LogRecord
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store

RUN_ID = "run-1"
CLOUDS = ("aws-sim", "gcp-sim", "azure-sim")
CALM_AT_S = 150.0
HORIZON_S = 2_500.0
CONDUCTOR_TICK_S = 1.0
PRICE_MICRO_USD_PER_S = 100
_SPENDING: frozenset[EffectName] = frozenset(
    {"provision", "precopy", "rehearse", "drain", "copy", "verify", "catch_up"}
)
_STORE_RATES = FaultRates(
    before=0.01, after=0.01, late=0.008, full=0.001, outage=0.0015, create=5.0, calm_at_s=CALM_AT_S
)
_CONDUCTOR_RATES = MischiefRates(crash=0.01, freeze=0.002, freeze_s=40.0, calm_at_s=CALM_AT_S)
_AGENT_RATES = MischiefRates(crash=0.00015, freeze=0.0003, freeze_s=60.0, calm_at_s=CALM_AT_S)
_PATIENCE = Patience(
    limits_s={
        "provision": 60.0, "precopy": 60.0, "rehearse": 90.0, "drain": 60.0, "copy": 60.0,
        "verify": 60.0, "catch_up": 60.0, "commit": 15.0, "go": float("inf"), "retire": 20.0,
        "cancel": float("inf"), "resume": 60.0, "release": 20.0,
    },
    silence_s=30.0,
    nodes_s=15.0,
    fresh_s=20.0,
    stop_grace_s=5.0,
)  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """What a planted bug replaces; see ``plants``."""

    engine: type[SimEngine] = SimEngine
    effects: type[MoveEffects] = MoveEffects
    collector: type[Collector] = Collector
    is_metered: bool = True


@dataclass
class MoveHistory:
    """What one seed did."""

    seed: int
    digest: str = ""
    phases: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
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
    people: People
    saga: Saga | None = None


class WatchedEffects:
    """Runs the production effects and judges what a saga asks for. An ``EffectRunner``.

    Args:
        effects: Does it.
        scene: Knows what was spent, and takes what must not be.
        move: Whose saga.
    """

    def __init__(self, effects: MoveEffects, scene: Scene, move: Move) -> None:
        self._effects = effects
        self._scene = scene
        self._move = move

    def run(self, effect: Effect, saga: Saga) -> EffectDone | EffectFailed | None:
        if effect.name in _SPENDING:
            self._judge(effect, saga)
        return self._effects.run(effect, saga)

    def _judge(self, effect: Effect, saga: Saga) -> None:
        scene, limit = self._scene, saga.plan.limit_micro_usd
        spent = scene.spent_micro_usd(self._move)
        if limit and spent >= limit:
            scene.report(
                "money is never spent beyond the limit", f"{effect.name} at {spent} of {limit}"
            )
        if not self._move.people.approved(saga.plan):
            scene.report("nothing is done that was not approved", f"{effect.name}")


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
        self.partitions = Partitions(self.scheduler, list(self.inner), calm_at_s=CALM_AT_S)
        self.skew_s = (self.random.random() - 0.5) * (240.0 if self.random.random() < 0.1 else 4.0)
        self.stores = {cloud: self._store(f"memory://{cloud}") for cloud in CLOUDS}
        short = self.random.random() < 0.1
        self.script = Script(
            total_steps=self.random.randrange(20, 60) if short else 1_000_000,
            fail=0.3 if self.random.random() < 0.15 else 0.0,
            drift=0.6 if self.random.random() < 0.25 else 0.0,
            tells_loss=self.random.random() < 0.9,
            fail_held=0.7 if derived_random(seed, "fail held").random() < 0.2 else 0.0,
        )
        self.engine = bug.engine(
            self.scheduler, self.open_store,
            mischief=self.mischief, rates=_AGENT_RATES, script=self.script,
            executed=self._executed, rehearsed=self._rehearsed, lost=self.judge.lost,
        )  # fmt: skip
        self.tidying = Tidying(self.scheduler, self.mischief, RUN_ID, collector_type=bug.collector)
        self.move: Move | None = None
        self.handed_at_s = 0.0
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
            is_cut=lambda: self.partitions.is_cut(url),
        )  # fmt: skip

    def _see(self, mutation: Mutation) -> None:
        before = self.judge.log.handed_over
        self.judge.see(mutation)
        after = self.judge.log.handed_over
        if after is not None and after is not before and self.judge.log.commits:
            self._check_handover(after[1])

    def _check_handover(self, handover: LogRecord) -> None:
        """In the moment of a handover: no step is lost, and its heir lives and has the state."""
        assert self.move is not None
        self.handed_at_s = self.scheduler.clock_s
        sealed = self.judge.log.commits[-1][1]
        if not self._was_forced(self.move.source.generation):
            self.judge.sealed_is_newest(sealed.step or 0)
        heir = self.engine.generation_of(handover.owner)
        ended_s = self.engine.ended_for_s(heir)
        if ended_s > 5.0:
            self.report("a run is given to the living", f"the target ended {ended_s:.0f} s ago")
        saga = self.move.saga
        if saga is not None and saga.closing == "replay" and saga.apart is not None:
            self.report("only equal losses close by replay", f"g{heir} is {saga.apart:g} apart")
        if self.engine.is_alive(heir) and not self._is_proved(heir, handover.to_url or "", sealed):
            self.report(
                "only a proved state is handed over", f"step {sealed.step} is not at g{heir}"
            )

    def _was_forced(self, generation: int) -> bool:
        """Whether a machine was to go, and its agent died before it could say everything."""
        is_noticed = self.move is not None and any(
            notice.side == "source" for notice in self.move.people.notices
        )
        return is_noticed and not self.engine.is_alive(generation)

    def _is_proved(self, heir: int, url: str, sealed: LogRecord) -> bool:
        """Whether the sealed state is whole in the heir's store, or in the memory of its ranks."""
        ranks, step = self.engine.ranks(heir), sealed.step or 0
        return self.judge.is_whole(url, sealed) or (
            ranks is not None and self.judge.is_state(ranks.holds(step), step)
        )

    def _executed(self, job: JobSpec, step: int, weights: object) -> None:
        self.history.steps += 1
        self.scheduler.trace(f"step {step} by g{job.generation}")
        self.judge.executed(job, step, weights)  # type: ignore[arg-type]

    def _rehearsed(self, job: JobSpec, step: int, weights: object) -> None:
        del weights  # what a standby computes is proved later, or thrown away
        self.scheduler.trace(f"step {step} rehearsed by g{job.generation}")
        self.judge.rehearsed(job, step)

    def spent_micro_usd(self, move: Move) -> int:
        """What the targets of a move have cost so far."""
        tries = 0 if move.saga is None else move.saga.tries
        first = move.target.generation
        paid_s = sum(self.engine.paid_s(g) for g in range(first, first + tries + 2))
        return round(paid_s * PRICE_MICRO_USD_PER_S)

    def _conduct(self, name: str) -> None:
        """The loop of the daemon, for the one move there is."""
        world = SimWorld(self.scheduler, name, wall_error_s=self.skew_s)
        move = self.move
        assert move is not None
        driver = self._driver(move, world)
        while not driver.saga.is_final:
            move.people.act(driver, world, self.report)
            if not driver.tick():
                world.sleep(CONDUCTOR_TICK_S)
            if move.saga != driver.saga:
                move.saga = driver.saga
                self.scheduler.trace(f"phase {driver.saga.phase} {driver.saga.error or ''}")
        move.saga = driver.saga

    def _driver(self, move: Move, world: World) -> MigrationDriver:
        effects = self.bug.effects(
            move.source, move.target, self.engine, self.open_store, world,
            patience=_PATIENCE, reprice=self._reprice,
        )  # fmt: skip
        return MigrationDriver.propose(
            move.plan, move.journal, WatchedEffects(effects, self, move), world,
            meter=(lambda _saga: self.spent_micro_usd(move)) if self.bug.is_metered else None,
        )  # fmt: skip

    def _reprice(self, saga: Saga, source_step_s: float, target_step_s: float) -> Bill:
        """A bill with what was measured: the same, a little worse, much worse, or better."""
        del source_step_s, target_step_s
        name = f"{saga.plan.migration_id}/{saga.tries}/{len(saga.earlier)}"
        chance = derived_random(self.history.seed, "bill", name)
        more = chance.choice([0, 0, 5_000, 2_000_000, 50_000_000, -50])
        return sample_bill(saga.plan.bill.total_micro_usd + more)
