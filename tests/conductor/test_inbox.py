from __future__ import annotations

from typing import Any

import pytest

from cloudshift_lab.conductor.inbox import AgentLine
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.orders import AgentStatus, Order, inbox_key, status_key
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("memory://inbox")


@pytest.fixture
def line(store: MemoryStore, world: Any) -> AgentLine:
    return AgentLine(store, "run-1", 3, world)


def orders(store: MemoryStore) -> list[tuple[str, str]]:
    found = []
    for number in range(10):
        try:
            order = from_json(store.get(inbox_key("run-1", 3, number)), Order)
        except NotFound:
            break
        found.append((order.order_id, order.kind))
    return found


def say(store: MemoryStore, beat: int) -> None:
    status = AgentStatus(run_id="run-1", generation=3, state="running", beat=beat, at=0.0)
    store.put(status_key("run-1", 3), to_json(status))


def test_orders_are_numbered_and_the_same_one_is_written_once(
    store: MemoryStore, line: AgentLine
) -> None:
    for _ in range(2):
        line.order("m:drain", "drain")
        line.order("m:resume", "resume")
    assert orders(store) == [("m:drain", "drain"), ("m:resume", "resume")]


def test_another_conductor_finds_what_was_ordered_before(
    store: MemoryStore, line: AgentLine, world: Any
) -> None:
    line.order("m:drain", "drain")
    world.clock_s += 100
    second = AgentLine(store, "run-1", 3, world)
    second.order("m:resume", "resume")
    second.order("m:drain", "drain")
    assert orders(store) == [("m:drain", "drain"), ("m:resume", "resume")]


def test_an_order_that_lost_its_place_takes_the_next_one(
    store: MemoryStore, line: AgentLine
) -> None:
    late = Order(order_id="late", kind="drain", at=0.0)
    store.create(inbox_key("run-1", 3, 0), to_json(late))
    line.order("m:resume", "resume")
    assert orders(store) == [("late", "drain"), ("m:resume", "resume")]


def test_an_agent_that_says_the_same_for_long_is_silent(
    store: MemoryStore, line: AgentLine, world: Any
) -> None:
    say(store, 1)
    for _ in range(8):
        line.look()
        world.clock_s += 5.0
    assert line.silent_for_s() == pytest.approx(35.0)
    say(store, 2)
    line.look()
    assert line.silent_for_s() == 0.0


def test_one_that_never_spoke_is_silent_from_the_first_look(line: AgentLine, world: Any) -> None:
    assert line.silent_for_s() == 0.0
    for _ in range(5):
        assert line.look() is None
        world.clock_s += 5.0
    assert line.silent_for_s() == pytest.approx(20.0)


def test_time_in_which_nobody_could_look_counts_for_nobody(
    store: MemoryStore, line: AgentLine, world: Any
) -> None:
    """A laptop that slept, or a store that was away, proves nothing about the agent."""
    say(store, 1)
    line.look()
    world.clock_s += 3600.0
    line.look()
    assert line.silent_for_s() == 0.0


def test_a_started_again_agent_is_listened_to_anew(
    store: MemoryStore, line: AgentLine, world: Any
) -> None:
    say(store, 7)
    for _ in range(6):
        line.look()
        world.clock_s += 5.0
    line.listen_anew()
    assert line.silent_for_s() == 0.0
    line.look()
    assert line.silent_for_s() == 0.0


def test_a_status_that_does_not_parse_is_no_word(store: MemoryStore, line: AgentLine) -> None:
    store.put(status_key("run-1", 3), b"{half")
    assert line.look() is None
