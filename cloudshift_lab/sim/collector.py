"""Who tidies a simulated store, and who branches from it: retention, collections, branches."""

from __future__ import annotations

import random
from collections.abc import Callable

from cloudshift_lab.checkpoint.branch import branch
from cloudshift_lab.checkpoint.gc import collect, list_pins
from cloudshift_lab.checkpoint.keep import KeepLatest, steps_to_forget
from cloudshift_lab.core.errors import CloudshiftError, NotFound, Unavailable
from cloudshift_lab.sim.mischief import Mischief, MischiefRates
from cloudshift_lab.sim.scheduler import Scheduler, SimWorld, derived_random
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

LINGER_S = 90.0
_RATES = MischiefRates(crash=0.006, freeze=0.006, freeze_s=20.0, calm_at_s=150.0)


class Collector:
    """Forgets old steps and collects one store, again and again, whoever else does.

    Args:
        store: What is tidied.
        run_id: Whose old steps are forgotten.
        world: Clock and nonces.
        random: How many steps stay, and how patient this collector is.
    """

    def __init__(self, store: Store, run_id: str, world: SimWorld, random: random.Random) -> None:
        self._store = store
        self._log = RunLog(store, run_id, world, deadline_s=15.0)
        self._run_id = run_id
        self._world = world
        self._random = random
        self._policy = KeepLatest(random.choice([1, 1, 2, 3]))
        self._grace_s = random.choice([0.0, 0.0, 10.0, 40.0])

    def body(self) -> None:
        """A process that tidies until the simulation ends."""
        while True:
            self._world.sleep(3.0 + self._random.random() * 27.0)
            try:
                self.forget()
                self.collect()
            except CloudshiftError:
                continue

    def forget(self) -> None:
        """Apply the policy to what is committed here."""
        pinned = [pin.step for pin in list_pins(self._store, self._run_id)]
        steps = steps_to_forget(self._log.sync().commits, self._policy, pinned=pinned)
        if steps:
            self._log.forget(steps=steps, nonce=self._world.new_id("forget"))

    def collect(self) -> None:
        """One collection with the production code; nobody's threads but the actor's."""
        collect(
            self._store, world=self._world, grace_s=self._grace_s, linger_s=LINGER_S, concurrency=1
        )


class Brancher:
    """Somebody who begins a new run from a step of the run, through crashes and lost answers."""

    def __init__(self, store: Store, run_id: str, world: SimWorld, random: random.Random) -> None:
        self._store = store
        self._run_id = run_id
        self._world = world
        self._random = random

    def body(self, name: str) -> None:
        """Choose a step that is there, and go on until it is branched or gone."""
        log = RunLog(self._store, self._run_id, self._world)
        for _ in range(30):
            self._world.sleep(1.0 + self._random.random() * 4.0)
            try:
                commits = log.sync().commits
                if commits:
                    step = self._random.choice(commits[-2:]).step or 0
                    branch(
                        self._store, self._run_id, step, name, owner=f"owner-of-{name}",
                        world=self._world, deadline_s=15.0, concurrency=1,
                    )  # fmt: skip
                    return
            except (Unavailable, NotFound):
                continue
            except CloudshiftError:
                return


class Tidying:
    """Starts collectors and branchers, and starts them again when they are killed."""

    def __init__(
        self, scheduler: Scheduler, mischief: Mischief, run_id: str, *,
        collector_type: type[Collector] = Collector,
    ) -> None:  # fmt: skip
        self._scheduler = scheduler
        self._mischief = mischief
        self._run_id = run_id
        self._collector_type = collector_type
        self._random = derived_random(scheduler.seed, "tidying")
        self._lives = 0

    def begin(self, stores: list[Store]) -> None:
        """In two of three histories somebody tidies, in some of them two; in some one branches."""
        draw = self._random.random()
        for _ in range(0 if draw < 0.33 else 1 if draw < 0.85 else 2):
            for store in stores:
                self._collect(store)
        if self._random.random() < 0.4:
            self._branch(self._random.choice(stores), f"branch-{self._scheduler.seed}")

    def _collect(self, store: Store) -> None:
        def body(world: SimWorld, chance: random.Random) -> None:
            self._collector_type(store, self._run_id, world, chance).body()

        self._spawn("collector", body, lambda: self._collect(store), self._random.random() * 40.0)

    def _branch(self, store: Store, name: str) -> None:
        def body(world: SimWorld, chance: random.Random) -> None:
            Brancher(store, self._run_id, world, chance).body(name)

        after_s = 20.0 + self._random.random() * 100.0
        self._spawn("brancher", body, lambda: self._branch(store, name), after_s)

    def _spawn(
        self, kind: str, body: Callable[[SimWorld, random.Random], None],
        again: Callable[[], None], after_s: float,
    ) -> None:  # fmt: skip
        self._lives += 1
        name = f"{kind}.{self._lives}"
        chance = derived_random(self._scheduler.seed, name)
        world = SimWorld(self._scheduler, name, wall_error_s=chance.random() * 4.0 - 2.0)
        actor = self._scheduler.spawn(name, lambda: body(world, chance), after_s=after_s)
        self._mischief.watch_over(actor, again, _RATES)
