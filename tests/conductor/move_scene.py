"""One move between two agents without ranks, driven tick by tick, its conductor killed at will."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.effects import MoveEffects, Patience
from cloudshift_lab.core.plan import Plan
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.migration import Saga, with_digest
from cloudshift_lab.sim.plans import sample_decision, sample_plan
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store


class Killed(BaseException):
    """kill -9 at this very point."""


class MemoryJournal:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def append(self, event: bytes) -> None:
        self.lines.append(event)

    def replay(self) -> tuple[bytes, ...]:
        return tuple(self.lines)


class Tapped:
    """A store that calls ``tap`` before and after everything the conductor does with it."""

    def __init__(self, store: Store, tap: Callable[[str, str], None]) -> None:
        self.url = store.url
        self._store = store
        self._tap = tap

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)

        def call(key: str, *args: Any, **named: Any) -> Any:
            self._tap(name, key)
            result = real(key, *args, **named)
            self._tap(name, key)
            return result

        return call


class Scene:
    """One move between two puppets; ``play`` is one life of the conductor."""

    def __init__(
        self, clouds: Any, *, target_cloud: str = "gcp-sim", generation: int = 2, **plan: Any
    ) -> None:
        self.clouds = clouds
        self.engine = clouds.engine
        self.world = clouds.world
        self.tap: Callable[[str, str], None] = lambda _name, _key: None
        target_url = clouds.stores[target_cloud].url
        self.plan: Plan = sample_plan(
            target_url=target_url, created_at=self.world.now(), expires_at=self.world.now() + 600,
        )  # fmt: skip
        self.plan = with_digest(msgspec.structs.replace(self.plan, **plan))
        self.reprice: Any = None
        self.meter: Any = None
        region = "us-west-2" if target_cloud == "aws-sim" else "us-central1"
        self.source = self.job("aws-sim", "us-east-1", 1, owner="run-1:start")
        self.target = self.job(
            target_cloud, region, generation, owner="run-1:mig-1", standby=True,
            source_cloud="aws-sim", source_url="memory://aws-sim",
        )  # fmt: skip
        self.engine.submit(self.source)
        self.engine.tick()
        self.journal = MemoryJournal()

    def job(self, cloud: str, region: str, generation: int, **named: Any) -> JobSpec:
        return JobSpec(
            run_id="run-1",
            generation=generation,
            placement=msgspec.structs.replace(
                self.plan.source, cloud=cloud, region=region, nodes=self.plan.target.nodes
            ),
            store_url=f"memory://{cloud}",
            script="/nowhere/script.py",
            home="/nowhere",
            workdir=f"/nowhere/{generation}",
            save_policy="10",
            seed=0,
            **named,
        )

    def driver(self) -> MigrationDriver:
        effects = MoveEffects(
            self.source,
            self.target,
            self.engine,
            lambda name, _url: Tapped(self.clouds.stores[name], self.tap),
            self.world,
            patience=Patience(silence_s=30.0),
            reprice=self.reprice,
        )
        self.effects = effects
        driver = MigrationDriver.propose(
            self.plan, self.journal, effects, self.world, meter=self.meter
        )
        driver.decide(sample_decision(self.plan))
        return driver

    def play(self, *, until: str = "", limit_s: float = 20_000.0) -> Saga:
        driver = self.driver()
        end = self.world.clock_s + limit_s
        while not driver.saga.is_final and driver.saga.phase != until:
            assert self.world.clock_s < end, f"stuck in {driver.saga.phase}: {driver.saga.error}"
            driver.tick()
            self.engine.tick()
            self.world.clock_s += 0.5
        return driver.saga

    def log(self, cloud: str) -> RunLog:
        return RunLog(self.clouds.stores[cloud], "run-1", self.world)

    def kinds(self, cloud: str) -> list[str]:
        return [record.kind for record in self.log(cloud).sync().records]

    def puppet(self, generation: int) -> Any:
        return self.engine.puppets["run-1", generation]


def kill_at(scene: Scene, at: int) -> Saga:
    """Kill the conductor at its ``at``-th store boundary, then let another one finish."""
    passed = 0

    def tap(_name: str, _key: str) -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            raise Killed

    scene.tap = tap
    try:
        return scene.play()
    except Killed:
        return scene.play()
