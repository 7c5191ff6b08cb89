"""The policy takes what is worth most, moves only when that pays, and never risks a deadline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.market.places import Choice, Floats, Look, Places, Task
from cloudshift_lab.market.policy import CostToFinish

SPOT = 3.0
TASK = Task(work_h=40.0, deadline_h=60.0, start_h=0.2, tick_h=0.25)


def places(num: int = 3, carry_usd: float = 1.0, on_demand: float = 12.0) -> Places:
    names = tuple(f"zone-{at}" for at in range(num))
    between = np.where(np.eye(num, dtype=bool), 0.0, carry_usd)
    return Places.of(names, names, np.full(num, on_demand), between)


def look(prices: list[float], **more: object) -> Look:
    plain = Look(0.0, 0.0, np.array(prices), np.ones(len(prices), dtype=bool))
    return replace(plain, **more)  # type: ignore[arg-type]


def settled(policy: CostToFinish, at: Look, ticks: int = 40) -> CostToFinish:
    """A policy that has looked at the same calm market for a while."""
    for _ in range(ticks):
        policy.memory.see(at, TASK.tick_h, TASK.work_h - at.done_h)
    return policy


def test_it_starts_where_spot_machines_are_cheapest() -> None:
    assert CostToFinish(places(), TASK).choose(look([3.0, 2.0, 4.0])) == Choice(1, "spot")


def test_it_does_not_start_where_nothing_can_be_had() -> None:
    up = np.array([True, False, True])
    assert CostToFinish(places(), TASK).choose(look([3.0, 2.0, 4.0], is_up=up)) == Choice(0, "spot")


def test_it_stays_when_another_place_is_only_a_little_cheaper() -> None:
    running = {"running": Choice(0, "spot"), "home": 0, "done_h": 5.0, "at_h": 6.0}
    policy = settled(CostToFinish(places(carry_usd=2.0), TASK), look([3.0, 2.9, 4.0], **running))
    assert policy.choose(look([3.0, 2.9, 4.0], **running)) == Choice(0, "spot")


def test_it_moves_when_another_place_is_much_cheaper() -> None:
    running = {"running": Choice(0, "spot"), "home": 0, "done_h": 5.0, "at_h": 6.0}
    policy = settled(CostToFinish(places(carry_usd=0.1), TASK), look([6.0, 1.0, 7.0], **running))
    assert policy.choose(look([6.0, 1.0, 7.0], **running)) == Choice(1, "spot")


def test_egress_that_outweighs_the_saving_keeps_it_where_it_is() -> None:
    running = {"running": Choice(0, "spot"), "home": 0, "done_h": 5.0, "at_h": 6.0}
    policy = settled(CostToFinish(places(carry_usd=500.0), TASK), look([6.0, 1.0, 7.0], **running))
    assert policy.choose(look([6.0, 1.0, 7.0], **running)) == Choice(0, "spot")


def test_it_buys_on_demand_when_the_slack_is_gone() -> None:
    none = np.zeros(3, dtype=bool)
    late = look([3.0, 3.0, 3.0], is_up=none, at_h=19.7, done_h=0.0)
    assert CostToFinish(places(), TASK).choose(late) == Choice(0, "on-demand")


def test_it_waits_for_a_market_that_is_dearer_than_usual() -> None:
    task = Task(work_h=4.0, deadline_h=400.0, start_h=0.2, tick_h=0.25)
    policy = settled(CostToFinish(places(), task), look([3.0, 3.0, 3.0]))
    assert policy.choose(look([9.0, 9.0, 9.0], home=0, at_h=10.0)) is None


def test_a_job_without_a_deadline_is_never_in_a_hurry() -> None:
    task = Task(work_h=40.0, deadline_h=float("inf"), start_h=0.2, tick_h=0.25)
    policy = CostToFinish(places(), task)
    assert policy.choose(look([3.0, 2.0, 4.0])) == Choice(1, "spot")
    assert policy.weigh(look([3.0, 2.0, 4.0], at_h=1e6)).value_usd_h < 12.0


def test_a_faster_place_is_worth_more_than_its_price_says() -> None:
    fast = places(2)
    fast = replace(fast, pace=np.array([1.0, 2.0]))
    assert CostToFinish(fast, TASK).choose(look([3.0, 4.0])) == Choice(1, "spot")


def test_weighing_changes_nothing() -> None:
    policy = settled(CostToFinish(places(), TASK), look([3.0, 2.0, 4.0]))
    first, again = policy.weigh(look([3.0, 2.0, 4.0])), policy.weigh(look([3.0, 2.0, 4.0]))
    assert np.array_equal(first.worth_usd, again.worth_usd)


@given(
    prices=st.lists(st.floats(0.5, 20), min_size=3, max_size=3),
    done_h=st.floats(0, 39), at_h=st.floats(0, 59), home=st.integers(0, 2),
)  # fmt: skip
def test_a_dominated_place_never_changes_the_choice(
    prices: list[float], done_h: float, at_h: float, home: int
) -> None:
    """As near as home, at twice the dearest price, and as dear on demand."""
    seen = look(prices, done_h=done_h, at_h=at_h, home=home)
    worse = _with_copy(places(), home)
    more = look([*prices, 2 * max(prices) + 1], done_h=done_h, at_h=at_h, home=home)
    policy, other = CostToFinish(places(), TASK), CostToFinish(worse, TASK)
    policy.memory.see(seen, TASK.tick_h)
    other.memory.see(more, TASK.tick_h)
    assert np.argmax(other.weigh(more).worth_usd) == np.argmax(policy.weigh(seen).worth_usd)


@given(carry=st.floats(0, 100), more=st.floats(0.01, 100))
def test_dearer_egress_never_makes_a_move_worth_more(carry: float, more: float) -> None:
    seen = look([3.0, 2.0, 4.0], running=Choice(0, "spot"), home=0, done_h=3.0, at_h=4.0)
    assert _worth(carry, seen)[1] >= _worth(carry + more, seen)[1]


def _worth(carry_usd: float, seen: Look) -> Floats:
    policy = CostToFinish(places(carry_usd=carry_usd), TASK)
    policy.memory.see(seen, TASK.tick_h)
    return policy.weigh(seen).worth_usd


def _with_copy(few: Places, home: int) -> Places:
    num = len(few)
    carry = np.zeros((num + 1, num + 1))
    carry[:num, :num] = few.carry_usd
    carry[num, :num], carry[:num, num] = few.carry_usd[home], few.carry_usd[:, home]
    return Places.of(
        (*few.names, "copy"), (*few.regions, "copy"),
        np.append(few.on_demand_usd_h, few.on_demand_usd_h[home]), carry,
    )  # fmt: skip
