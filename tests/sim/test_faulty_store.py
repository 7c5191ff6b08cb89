"""The store that fails: what it does to the data and what it tells."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.sim.faulty_store import CALM, FaultRates, FaultyStore, Mutation
from cloudshift_lab.sim.scheduler import Scheduler
from cloudshift_lab.storage.memory import MemoryStore

KINDS = ("before", "after", "late", "full", "outage", "denied", "damaged")
NEVER = dict.fromkeys(KINDS, 0.0)


def rates(**changes: float) -> FaultRates:
    return FaultRates(**{**NEVER, **changes})


def live(
    how: FaultRates, body: Callable[[FaultyStore], None], seed: int = 1
) -> tuple[MemoryStore, list[Mutation], Scheduler]:
    scheduler, inner, seen = Scheduler(seed), MemoryStore("memory://s"), []
    store = FaultyStore(inner, scheduler, how, watch=seen.append, yielded=lambda operation: None)
    scheduler.spawn("actor", lambda: body(store))
    scheduler.run()
    return inner, seen, scheduler


def refused(store: FaultyStore) -> None:
    with pytest.raises(Unavailable):
        store.put("k", b"v")


def test_an_error_before_the_effect_leaves_nothing() -> None:
    inner, seen, _ = live(rates(before=1.0), refused)
    assert (inner.size("k"), seen) == (None, [])


def test_an_error_after_the_effect_leaves_the_effect() -> None:
    inner, seen, _ = live(rates(after=1.0), refused)
    assert inner.get("k") == b"v"
    assert [(m.key, m.data, m.before, m.actor) for m in seen] == [("k", b"v", None, "actor")]


def test_a_late_effect_lands_after_the_caller_was_told_of_a_failure() -> None:
    at: list[tuple[float, int | None]] = []

    def body(store: FaultyStore) -> None:
        refused(store)
        at.append((store.scheduler.clock_s, store.inner.size("k")))
        store.scheduler.pause(60.0)
        at.append((store.scheduler.clock_s, store.inner.size("k")))

    sizes = set()
    for seed in range(20):
        at.clear()
        live(rates(late=1.0), body, seed)
        sizes.add(at[0][1])
        assert at[1][1] == 1
    assert None in sizes


def test_a_late_create_never_replaces_what_came_before_it() -> None:
    def body(store: FaultyStore) -> None:
        with pytest.raises(Unavailable):
            store.create("k", b"mine")
        store.inner.create("k", b"yours")
        store.scheduler.pause(60.0)

    for seed in range(10):
        inner, seen, _ = live(rates(late=1.0), body, seed)
        assert inner.get("k") in (b"mine", b"yours")
        assert len(seen) <= 1


def test_nothing_fails_after_the_calm() -> None:
    def body(store: FaultyStore) -> None:
        store.scheduler.pause(300.0)
        for index in range(200):
            store.put(f"k{index}", b"v")
            assert store.get(f"k{index}") == b"v"

    everything = FaultRates(**dict.fromkeys(KINDS, 0.5))
    live(everything, body)


def test_damage_reaches_the_reader_and_not_the_object() -> None:
    def body(store: FaultyStore) -> None:
        store.put("packs/p", b"bytes")
        store.put("plain", b"bytes")
        assert store.get("packs/p") != b"bytes"
        assert store.get("plain") == b"bytes"

    inner, _, _ = live(rates(damaged=1.0), body)
    assert inner.get("packs/p") == b"bytes"


def test_an_outage_takes_the_store_from_everybody_for_a_while() -> None:
    def body(store: FaultyStore) -> None:
        refused(store)
        store.rates = CALM
        failures = 0
        for _ in range(100):
            try:
                store.size("k")
            except Unavailable:
                failures += 1
        assert 0 < failures < 100

    live(rates(outage=1.0), body, seed=3)
