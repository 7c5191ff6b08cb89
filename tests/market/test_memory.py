"""What a job has seen of its market decays, and begins from a prior."""

from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.market.memory import Memory
from cloudshift_lab.market.places import Look, Places

PLACES = Places.of(("a1", "a2", "b1"), ("a", "a", "b"), np.full(3, 9.0), np.zeros((3, 3)))
TICK_H = 0.5


def look(up: tuple[bool, bool, bool], prices: tuple[float, float, float] = (3, 2, 4)) -> Look:
    return Look(0.0, 0.0, np.array(prices, dtype=float), np.array(up))


def seen(*ups: tuple[bool, bool, bool]) -> Memory:
    memory = Memory(PLACES)
    for up in ups:
        memory.see(look(up), TICK_H)
    return memory


def test_before_anything_was_seen_all_places_last_an_hour() -> None:
    assert seen((True, True, True)).life_h() == pytest.approx([1.0, 1.0, 1.0])


def test_machines_that_were_never_taken_away_are_expected_to_last() -> None:
    memory = seen(*[(True, True, True)] * 40)
    assert (memory.life_h() > 3).all()


def test_a_place_that_fails_often_is_expected_to_fail_again() -> None:
    memory = seen(*[(True, True, True), (False, True, True)] * 10)
    steady, fickle = memory.life_h()[1], memory.life_h()[0]
    assert fickle < 0.6 < steady


def test_old_failures_are_forgotten() -> None:
    bad = [(True, True, True), (False, True, True)] * 5
    fresh = seen(*bad).life_h()[0]
    assert seen(*bad, *[(True, True, True)] * 40).life_h()[0] > 3 * fresh


def test_a_region_is_up_while_any_of_its_zones_is() -> None:
    memory = seen(*[(True, False, False), (False, True, False)] * 30)
    first, second = memory.region_up()
    assert first > 0.9
    assert second < 0.2


def test_how_long_a_region_is_down_is_measured_but_never_over_three_hours() -> None:
    memory = seen(*[(True, True, True), (True, True, False)] * 10)
    assert memory.region_down_h()[1] < 0.7
    assert seen(*[(True, True, False)] * 40).region_down_h()[1] == pytest.approx(3.0)


def test_a_regions_price_is_that_of_its_cheapest_zone_to_be_had() -> None:
    memory = seen(*[(True, False, True)] * 5)
    assert memory.region_usd_h(look((True, False, True))) == pytest.approx([3.0, 4.0])


def test_prices_count_per_hour_of_the_reference_machine() -> None:
    double = Places.of(
        ("a", "b"), ("a", "b"), np.full(2, 9.0), np.zeros((2, 2)), np.array([1.0, 2.0])
    )  # fmt: skip
    memory = Memory(double)
    shown = Look(0.0, 0.0, np.array([3.0, 4.0]), np.array([True, True]))
    memory.see(shown, TICK_H)
    assert memory.usual_low_usd_h(shown) == pytest.approx(2.0)
    assert memory.region_usd_h(shown) == pytest.approx([3.0, 2.0])


def test_the_usual_low_price_follows_slowly_and_is_never_above_the_one_shown() -> None:
    memory = seen(*[(True, True, True)] * 10)
    assert memory.usual_low_usd_h(look((True, True, True), (30, 20, 40))) == pytest.approx(2.0)
    assert memory.usual_low_usd_h(look((True, True, True), (30, 1, 40))) == pytest.approx(1.0)


def test_a_market_in_which_nothing_can_be_had_still_has_a_price() -> None:
    memory = seen((False, False, False))
    assert memory.usual_low_usd_h(look((False, False, False))) == pytest.approx(2.0)
