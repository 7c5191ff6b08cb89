"""The deterministic threads."""

from __future__ import annotations

import pytest

from cloudshift_lab.sim.scheduler import ActorCrashed, Scheduler, SimWorld, derived_seed


def test_sleepers_wake_in_the_order_of_virtual_time() -> None:
    scheduler, seen = Scheduler(1), []

    def sleeper(name: str, seconds: float) -> None:
        world = SimWorld(scheduler, name)
        for _ in range(3):
            world.sleep(seconds)
            seen.append((name, world.monotonic()))

    scheduler.spawn("slow", lambda: sleeper("slow", 10.0))
    scheduler.spawn("fast", lambda: sleeper("fast", 4.0))
    scheduler.run()
    assert seen == [
        ("fast", 4.0), ("fast", 8.0), ("slow", 10.0), ("fast", 12.0),
        ("slow", 20.0), ("slow", 30.0),
    ]  # fmt: skip


def test_nobody_else_runs_between_two_yield_points() -> None:
    scheduler, shared = Scheduler(1), {"value": 0}

    def adder() -> None:
        world = SimWorld(scheduler, "adder")
        for _ in range(200):
            value = shared["value"]
            shared["value"] = value + 1
            world.sleep(0.0)

    for index in range(4):
        scheduler.spawn(f"adder-{index}", adder)
    scheduler.run()
    assert shared["value"] == 800


def order_of(seed: int) -> str:
    scheduler = Scheduler(seed)

    def walker(name: str) -> None:
        world = SimWorld(scheduler, name)
        for _ in range(20):
            scheduler.trace(world.new_id("x"))
            world.sleep(world.random())

    for name in ("a", "b", "c"):
        scheduler.spawn(name, lambda name=name: walker(name))
    scheduler.run()
    return scheduler.digest()


def test_a_seed_decides_the_order_of_everything() -> None:
    assert order_of(7) == order_of(7)
    assert order_of(7) != order_of(8)


def test_a_crashed_actor_stops_at_its_yield_point_whatever_it_catches() -> None:
    scheduler, seen = Scheduler(1), []

    def stubborn() -> None:
        world = SimWorld(scheduler, "stubborn")
        while True:
            try:
                world.sleep(1.0)
                seen.append(world.monotonic())
            except Exception:  # noqa: BLE001 - the point of the test
                seen.append(-1.0)
            finally:
                if world.monotonic() > 2.0:
                    world.sleep(1.0)  # a dead process does no cleaning up

    actor = scheduler.spawn("stubborn", stubborn)
    scheduler.call_later(2.5, lambda: scheduler.crash(actor))
    scheduler.run()
    assert seen == [1.0, 2.0]
    assert actor.done
    assert scheduler.clock_s == 2.5


def test_a_frozen_actor_goes_on_where_it_was_much_later() -> None:
    scheduler, seen = Scheduler(1), []

    def body() -> None:
        world = SimWorld(scheduler, "a")
        scheduler.freeze(actor, 100.0)
        world.sleep(1.0)
        seen.append(world.monotonic())

    actor = scheduler.spawn("a", body)
    scheduler.run()
    assert seen == [101.0]


def test_the_horizon_ends_what_would_go_on_for_ever() -> None:
    scheduler = Scheduler(1, horizon_s=50.0)

    def forever() -> None:
        while True:
            SimWorld(scheduler, "a").sleep(1.0)

    actor = scheduler.spawn("a", forever)
    scheduler.run()
    assert actor.done


def test_an_error_of_an_actor_comes_out_of_run() -> None:
    scheduler = Scheduler(1)

    def wrong() -> None:
        SimWorld(scheduler, "a").sleep(1.0)
        raise ValueError("mine")

    scheduler.spawn("a", wrong)
    scheduler.spawn("b", lambda: SimWorld(scheduler, "b").sleep(9.0))
    with pytest.raises(ValueError, match="mine"):
        scheduler.run()


def test_an_actor_may_start_another_one() -> None:
    scheduler, seen = Scheduler(1), []

    def parent() -> None:
        scheduler.spawn("child", lambda: seen.append(scheduler.current), after_s=2.0)
        scheduler.pause(1.0)
        seen.append("parent")

    scheduler.spawn("parent", parent)
    scheduler.run()
    assert seen == ["parent", "child"]


def test_a_crash_is_no_exception_that_production_code_would_catch() -> None:
    assert not issubclass(ActorCrashed, Exception)


def test_seeds_of_parts_differ_and_stay_the_same_for_ever() -> None:
    assert derived_seed(1, "store", "a") == 13088958315506057282
    assert derived_seed(1, "store", "b") != derived_seed(2, "store", "b")
