"""How many requests at a time, how many repetitions, how fast: plain arithmetic of time."""

from __future__ import annotations

import pytest

from cloudshift_lab.storage.pace import RetryBudget, Speedometer, Throttle, Window

MIB = 2**20


def test_trouble_halves_the_window_once_for_all_that_was_under_way() -> None:
    window = Window(8)
    for _ in range(8):
        window.begin()
    for _ in range(4):
        window.end_badly(began_at=1.0, now=2.0)
    assert (window.limit, window.under_way) == (4, 4)
    for _ in range(4):
        window.end_badly(began_at=2.5, now=3.0)
    assert (window.limit, window.under_way) == (2, 0)


def test_it_never_closes_and_opens_by_one_after_each_good_round() -> None:
    window = Window(4)
    for now in range(10):
        window.begin()
        window.end_badly(began_at=now, now=now)
    assert window.limit == 1
    grown = []
    for _ in range(1 + 2 + 3 + 4):
        window.begin()
        window.end_well(0.1)
        grown.append(window.limit)
    assert grown == [2, 2, 3, 3, 3, 4, 4, 4, 4, 4]


def rounds(window: Window, num: int, took_s: float) -> list[int]:
    """Sizes of the parts after each of some rounds."""
    found = []
    for _ in range(num):
        for _ in range(window.limit):
            window.begin()
            window.end_well(took_s)
        found.append(window.part_bytes // MIB)
    return found


def test_parts_grow_while_they_come_quickly_and_shrink_when_they_are_slow() -> None:
    window = Window(8)
    assert window.part_bytes == MIB
    assert rounds(window, 4, 0.5) == [2, 4, 8, 8]
    assert rounds(window, 2, 2.0) == [8, 8]
    assert rounds(window, 1, 3.5) == [1]
    assert (window.part_bytes, window.limit) == (MIB, 8)


def test_trouble_makes_parts_smaller_too() -> None:
    window = Window(1)
    assert window.part_bytes == 8 * MIB
    for now in range(5):
        window.begin()
        window.end_badly(began_at=now, now=now)
    assert window.part_bytes == MIB


def test_pauses_grow_and_are_drawn_from_nothing_to_their_longest() -> None:
    longest = [RetryBudget(0.0).pause_s(attempt, 0.0, 1.0) for attempt in (1, 2, 3, 9)]
    assert longest == pytest.approx([0.2, 0.4, 0.8, 5.0])
    assert RetryBudget(0.0).pause_s(5, 0.0, 0.0) == 0.0


def test_without_answers_repetitions_become_one_in_two_seconds() -> None:
    budget, now, asked = RetryBudget(0.0), 0.0, 0
    while now < 60:
        now += max(0.01, budget.pause_s(1, now, 0.0))
        asked += 1
    assert 30 <= asked <= 42
    assert budget.num_retries == asked


def test_answers_earn_repetitions() -> None:
    budget = RetryBudget(0.0)
    for _ in range(10):
        assert budget.pause_s(1, 0.0, 0.0) == 0.0
    assert budget.pause_s(1, 0.0, 0.0) > 0
    for _ in range(30):
        budget.earn()
    assert budget.pause_s(1, 0.0, 0.0) == 0.0


def test_a_throttle_lets_each_part_wait_for_those_before() -> None:
    throttle = Throttle(1000.0)
    throttle.take(500, now=10.0)
    throttle.take(250, now=10.0)
    assert throttle.free_at() == pytest.approx(10.75)
    throttle.take(100, now=20.0)
    assert throttle.free_at() == pytest.approx(20.1)


def test_no_limit_never_waits() -> None:
    throttle = Throttle(None)
    throttle.take(10**12, now=1.0)
    assert throttle.free_at() < 1.0
    assert throttle.part_bytes == 8 * MIB


def test_speed_is_that_of_the_last_seconds() -> None:
    meter = Speedometer(0.0)
    assert meter.bytes_per_s(1.0) is None
    for second in range(1, 11):
        meter.add(100 * second, float(second))
    for second in range(11, 21):
        meter.add(1000 + 10 * (second - 10), float(second))
    assert meter.bytes_per_s(20.0) == pytest.approx(10.0)
    assert meter.bytes_per_s(30.0) == pytest.approx(50 / 15)
