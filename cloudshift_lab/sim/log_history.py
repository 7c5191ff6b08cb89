"""One random life of a run log: owners racing, sleeping, dying, handing over and calling off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloudshift_lab.core.errors import CloudshiftError, Conflict, Unavailable
from cloudshift_lab.sim.faulty_store import FaultRates, FaultyStore, Mutation
from cloudshift_lab.sim.mischief import Mischief, MischiefRates
from cloudshift_lab.sim.scheduler import Scheduler, SimWorld, derived_random
from cloudshift_lab.sim.watch import LogWatch, Violation
from cloudshift_lab.storage.log import LogBase, LogRecord, LogState, RunLog
from cloudshift_lab.storage.memory import MemoryStore

RUN_ID = "run-1"
URLS = ("memory://aws-sim", "memory://gcp-sim")
LAST_TRY_S = 400.0
_RATES = FaultRates(before=0.05, after=0.05, late=0.05, outage=0.002)
_MISCHIEF = MischiefRates(crash=0.004, freeze=0.01)


class UnfencedLog(RunLog):
    """Planted bug: appends without looking at the generation."""

    def _check_owner(self, state: LogState, generation: int) -> str:
        del generation
        return state.owner or "nobody"

    def _check_acquire(
        self, state: LogState, generation: int, owner: str, base: LogBase | None
    ) -> None:
        """Take it, whoever has it."""


@dataclass
class LogHistory:
    """What one seed did."""

    seed: int
    digest: str = ""
    records: int = 0
    handovers: int = 0
    generations: int = 0
    injected_faults: int = 0
    crashes: int = 0
    violations: list[Violation] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


class _Scene:
    """Two stores, one watch, and contenders that come back after a crash."""

    def __init__(self, seed: int, log_type: type[RunLog]) -> None:
        self.history = LogHistory(seed)
        self.log_type = log_type
        self.scheduler = Scheduler(seed, horizon_s=LAST_TRY_S + 200.0)
        self.mischief = Mischief(self.scheduler, _MISCHIEF)
        self.watch = LogWatch(RUN_ID, self.report)
        self.stores = {url: self._store(url) for url in URLS}
        self.newest_s = 0.0
        self._lives: dict[str, int] = {}
        self._random = derived_random(seed, "scene")

    def _store(self, url: str) -> FaultyStore:
        return FaultyStore(
            MemoryStore(url), self.scheduler, _RATES,
            watch=self.see, yielded=self.mischief.yielded,
        )  # fmt: skip

    def see(self, mutation: Mutation) -> None:
        if self.watch.see(mutation) is not None:
            self.newest_s = self.scheduler.clock_s

    def report(self, invariant: str, detail: str) -> None:
        clock_s = self.scheduler.clock_s
        self.history.violations.append(Violation(self.history.seed, invariant, detail, clock_s))
        self.scheduler.stop()

    def enter(self, name: str) -> None:
        life = self._lives[name] = self._lives.get(name, 0) + 1
        contender = _Contender(self, name, f"{name}.{life}")
        actor = self.scheduler.spawn(contender.life, contender.body)
        self.mischief.watch_over(actor, lambda: self._come_back(name))

    def _come_back(self, name: str) -> None:
        self.scheduler.call_later(self._random.random() * 20.0, lambda: self.enter(name))


class _Contender:
    """Somebody who wants to own the run, for as long as it lives."""

    def __init__(self, scene: _Scene, name: str, life: str) -> None:
        self.scene = scene
        self.name = name
        self.life = life
        self.world = SimWorld(scene.scheduler, life)
        self.random = derived_random(scene.scheduler.seed, "contender", life)
        self.logs = {
            url: scene.log_type(store, RUN_ID, self.world, deadline_s=15.0)
            for url, store in scene.stores.items()
        }
        self.url = URLS[0]
        self.generation = 0
        self.step = 0
        self.last_migration = ("mig-none", self.url)

    def body(self) -> None:
        while self.world.monotonic() < LAST_TRY_S:
            self.world.sleep(self.random.random() * 15.0)
            try:
                self._act()
            except Unavailable:
                continue
            except CloudshiftError:
                self.generation = 0

    def _act(self) -> None:
        if self.generation == 0:
            self._contend()
            return
        if self.logs[self.url].sync().awaits_step:
            self._commit()  # the second record of an arrival comes before anything else
            return
        act: Callable[[], None] = self.random.choices(
            [self._commit, self._hand_over, self._call_off, self._release, self._tidy],
            weights=[12, 3, 2, 0.3, 3],
        )[0]
        act()

    def _contend(self) -> None:
        """Look where the run is now, and take what is ours, or now and then what is not."""
        states = {url: log.sync() for url, log in self.logs.items()}
        url = max(states, key=lambda url: (states[url].generation, states[url].home_url is None))
        state = states[url]
        if state.home_url is not None:
            given = [record for record in state.records if record.kind == "handover"][-1]
            if given.owner == self.name:
                base = LogBase(url=url, seq=given.seq, digest=given.digest)
                self._take(state.home_url, given.generation, base)
        elif state.awaits_step:
            if state.owner == self.name:  # we died between the two records of an arrival
                self._take(url, state.generation, None)
        elif self.random.random() < 0.3:
            self._take(url, state.generation + 1, None)

    def _take(self, url: str, generation: int, base: LogBase | None) -> None:
        self.url = url
        nonce = self.world.new_id("n")
        log = self.logs[url]
        self._acked(log.acquire(generation=generation, owner=self.name, nonce=nonce, base=base))
        commits = [record for log in self.logs.values() for record in log.sync().commits]
        self.step = max((record.step or 0 for record in commits), default=0)
        self.generation = generation
        if log.sync().awaits_step:
            self._commit()

    def _commit(self) -> None:
        self.step += 1
        record = self.logs[self.url].commit(
            generation=self.generation, step=self.step, manifest_key="m", manifest_digest="d",
            nonce=self.world.new_id("n"),
        )  # fmt: skip
        self._acked(record)

    def _hand_over(self) -> None:
        migration = self.world.new_id("mig")
        self.last_migration = (migration, self.url)
        heir = f"c{self.random.randrange(4)}"
        record = self.logs[self.url].handover(
            generation=self.generation, to_url=self.random.choice(URLS), new_owner=heir,
            migration_id=migration, nonce=f"{migration}:commit",
        )  # fmt: skip
        self.generation = 0
        self._acked(record)

    def _call_off(self) -> None:
        """As a conductor does after a handover of which it heard nothing."""
        migration, url = self.last_migration
        try:
            record = self.logs[url].cancel(
                generation=self.generation, migration_id=migration, nonce=f"{migration}:cancel"
            )
        except Conflict:
            return
        self.scene.watch.check_acked(url, record)

    def _tidy(self) -> None:
        """As retention and a collection do, in any log and owner or not."""
        log = self.logs[self.random.choice(URLS)]
        steps = [record.step or 0 for record in log.sync().commits]
        nonce = self.world.new_id("tidy")
        if self.random.random() < 0.5:
            log.forget(steps=steps, nonce=nonce)
            return
        log.sweep(collection="gc-1", nonce=nonce)

    def _release(self) -> None:
        self._acked(
            self.logs[self.url].release(generation=self.generation, nonce=self.world.new_id("n"))
        )
        self.generation = 0

    def _acked(self, record: LogRecord) -> None:
        self.scene.watch.check_acked(self.url, record)


def run_log_history(seed: int, log_type: type[RunLog] = RunLog) -> LogHistory:
    """Live one history of four contenders and judge it.

    Args:
        seed: Decides everything.
        log_type: ``RunLog``, or one with a planted bug.
    """
    scene = _Scene(seed, log_type)
    for index in range(4):
        scene.enter(f"c{index}")
    scene.scheduler.run()
    history = scene.history
    _check_alive(scene)
    records = [record for log in scene.watch.logs.values() for record in log]
    history.records = len(records)
    history.handovers = sum(record.kind == "handover" for record in records)
    history.generations = scene.watch.generation
    history.injected_faults = sum(sum(s.faults.values()) for s in scene.stores.values())
    history.injected_faults += scene.mischief.freezes
    history.crashes = scene.mischief.crashes
    history.digest = scene.scheduler.digest()
    history.trace = scene.scheduler.lines
    return history


def _check_alive(scene: _Scene) -> None:
    """After a hundred calm seconds somebody must have written again."""
    if scene.history.violations:
        return
    if scene.newest_s < _RATES.calm_at_s:  # when it landed: its writer may have slept meanwhile
        scene.report("calm brings progress", f"nothing was written after {_RATES.calm_at_s} s")
