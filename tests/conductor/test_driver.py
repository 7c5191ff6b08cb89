from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.core.errors import Corrupt, StaleDecision
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.migration import Effect, EffectDone, EffectFailed, Saga
from cloudshift_lab.sim.plans import sample_decision, sample_plan

AT = 1_100.0


class Killed(BaseException):
    """kill -9 at this very point."""


class FixedWorld:
    clock_s = 0.0

    def now(self) -> float:
        return AT

    def monotonic(self) -> float:
        self.clock_s += 60.0
        return self.clock_s

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a driver never sleeps")

    def random(self) -> float:
        raise AssertionError("a driver draws nothing")

    def new_id(self, prefix: str) -> str:
        raise AssertionError("a driver invents nothing")


@dataclass
class Fuse:
    """Kills at the n-th boundary it is told of; never when ``at`` is None."""

    at: int | None = None
    passed: int = 0

    def boundary(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise Killed


@dataclass
class Disk:
    """Keeps lines across kills, like a file."""

    fuse: Fuse
    lines: list[bytes] = field(default_factory=list)

    def append(self, event: bytes) -> None:
        self.fuse.boundary()
        self.lines.append(event)
        self.fuse.boundary()

    def replay(self) -> tuple[bytes, ...]:
        return tuple(self.lines)


@dataclass
class Outside:
    """The world that effects change. It remembers each effect by key, so a repeat is a no-op."""

    fuse: Fuse
    failing: dict[str, str] = field(default_factory=dict)
    happened: list[str] = field(default_factory=list)

    def run(self, effect: Effect, saga: Saga) -> EffectDone | EffectFailed | None:
        self.fuse.boundary()
        if effect.name in self.failing:
            return EffectFailed(effect.name, AT, self.failing[effect.name], "broken")
        if effect.key not in self.happened:
            self.happened.append(effect.key)
            self.fuse.boundary()
            return None
        self.fuse.boundary()
        return EffectDone(effect.name, AT, step=40, manifest_digest="d", step_at=AT)


def drive(disk: Disk, outside: Outside) -> Saga:
    """One life of a conductor: from the journal to the end, unless it is killed."""
    plan = sample_plan()
    driver = MigrationDriver.propose(plan, disk, outside, FixedWorld())
    driver.decide(sample_decision(plan))
    for _ in range(1000):
        if driver.saga.is_final:
            return driver.saga
        driver.tick()
    raise AssertionError(f"stuck in {driver.saga.phase}")


def live_until_done(fuse_at: int | None, failing: dict[str, str]) -> tuple[Saga, list[str], int]:
    fuse = Fuse(fuse_at)
    disk, outside = Disk(fuse), Outside(fuse, failing)
    for _ in range(3):
        try:
            saga = drive(disk, outside)
        except Killed:
            continue
        return saga, outside.happened, fuse.passed
    raise AssertionError("killed more than once")


@pytest.mark.parametrize(
    "failing",
    [{}, {"copy": "Corrupt"}, {"provision": "NotFound"}, {"commit": "Unavailable"},
     {"retire": "Unavailable"}],
    ids=lambda failing: "-".join(failing) or "smooth",
)  # fmt: skip
def test_a_conductor_killed_at_any_boundary_ends_where_it_would_have(
    failing: dict[str, str],
) -> None:
    smooth, effects, boundaries = live_until_done(None, failing)
    assert boundaries > 20
    for at in range(1, boundaries + 1):
        saga, happened, _ = live_until_done(at, failing)
        assert saga == smooth, f"killed at boundary {at}"
        assert happened == effects, f"killed at boundary {at}"


def test_an_outcome_is_in_the_journal_before_the_saga_knows_it() -> None:
    disk = Disk(Fuse())
    plan = sample_plan()
    driver = MigrationDriver.propose(plan, disk, Outside(disk.fuse), FixedWorld())
    disk.fuse.at = disk.fuse.passed + 1
    with pytest.raises(Killed):
        driver.decide(sample_decision(plan))
    assert driver.saga.decision is None
    assert len(disk.lines) == 1


def test_the_same_decision_again_is_kept_once() -> None:
    disk = Disk(Fuse())
    plan = sample_plan()
    driver = MigrationDriver.propose(plan, disk, Outside(disk.fuse), FixedWorld())
    driver.decide(sample_decision(plan))
    driver.decide(sample_decision(plan))
    assert len(disk.lines) == 2
    with pytest.raises(StaleDecision, match="decided already: approve by ada"):
        driver.decide(sample_decision(plan, "reject", decision_id="dec-2"))


def test_a_plan_that_nobody_decides_on_expires() -> None:
    disk = Disk(Fuse())
    plan = sample_plan(expires_at=AT - 1)
    driver = MigrationDriver.propose(plan, disk, Outside(disk.fuse), FixedWorld())
    assert driver.tick()
    assert driver.saga.phase == "expired"
    with pytest.raises(StaleDecision) as caught:
        driver.decide(sample_decision(plan))
    assert caught.value.facts["reason"] == "expired"


def test_calling_off_is_kept_once_and_not_after_the_commit() -> None:
    disk = Disk(Fuse())
    driver = MigrationDriver.propose(sample_plan(), disk, Outside(disk.fuse), FixedWorld())
    assert driver.abort("the run ended").phase == "rejected"
    assert driver.abort("the run ended").phase == "rejected"
    assert len(disk.lines) == 2


def test_a_failing_effect_is_left_alone_for_longer_and_longer() -> None:
    class SlowWorld(FixedWorld):
        def monotonic(self) -> float:
            return self.clock_s

    world, disk = SlowWorld(), Disk(Fuse())
    outside = Outside(disk.fuse, {"provision": "NotFound", "release": "Unavailable"})
    plan = sample_plan()
    driver = MigrationDriver.propose(plan, disk, outside, world)
    driver.decide(sample_decision(plan))
    while driver.saga.effect != "release":
        driver.tick()
    waits = []
    assert driver.tick()
    for _ in range(4):
        start = world.clock_s
        while not driver.tick():
            world.clock_s += 0.05
        waits.append(world.clock_s - start)
    assert waits == sorted(waits)
    assert waits[0] > 0


@pytest.mark.parametrize("lines", [[], [b"{}"], [to_json(EffectDone("drain", AT))]])
def test_a_journal_without_its_plan_is_corrupt(lines: list[bytes]) -> None:
    disk = Disk(Fuse(), lines)
    with pytest.raises(Corrupt, match="journal"):
        MigrationDriver(disk, Outside(disk.fuse), FixedWorld())
