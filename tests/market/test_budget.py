"""Budgets: each level is told once, and what is left over pays for the last save."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.budget import (
    LEVELS,
    budget_words,
    check_budget,
    is_used_up,
    lasts_s,
    levels_reached,
    new_levels,
    reserve_micro_usd,
)

budgets = st.integers(1, 10**12)
amounts = st.integers(0, 10**12)


@pytest.mark.parametrize(
    ("spent", "levels"),
    [(0, ()), (499_999, ()), (500_000, (50,)), (800_000, (50, 80)), (10**6, LEVELS),
     (10**9, LEVELS)],
)  # fmt: skip
def test_levels_are_reached_at_50_80_and_100_percent(spent, levels):
    assert levels_reached(10**6, spent) == levels


@given(budgets, st.lists(amounts, max_size=8).map(sorted))
def test_every_level_is_told_once_and_in_order(budget, spendings):
    told = []
    for spent in spendings:
        told += new_levels(budget, spent, told)
    assert told == list(levels_reached(budget, spendings[-1] if spendings else 0))


@given(budgets, st.integers(0, 10**9), st.none() | st.floats(0, 1e6))
def test_no_more_than_a_tenth_is_kept_back(budget, price, save_s):
    assert 0 <= reserve_micro_usd(budget, price, save_s) <= budget / 10 + 1


def test_what_is_kept_back_is_what_the_last_save_costs():
    assert reserve_micro_usd(100_000_000, 3_600_000, save_s=30.0) == 30_000
    assert reserve_micro_usd(100_000_000, 3_600_000) == 1_000
    assert not is_used_up(100_000_000, 99_969_999, 30_000)
    assert is_used_up(100_000_000, 99_970_000, 30_000)


@given(budgets, amounts, st.integers(1, 10**9), amounts)
def test_a_run_is_used_up_exactly_when_nothing_is_left_to_last(budget, spent, price, reserve):
    left_s = lasts_s(budget, spent, price, reserve)
    assert (left_s == 0) == is_used_up(budget, spent, reserve)


def test_what_costs_nothing_lasts_for_ever():
    assert lasts_s(10**6, 0, 0, 0) is None
    assert budget_words(10**6, 0, None) == "$0.00 of the budget of $1.00 is spent (0%)"


def test_the_words_say_how_much_and_how_long():
    words = budget_words(5_000_000, 4_100_000, 900.0)
    assert words == (
        "$4.10 of the budget of $5.00 is spent (82%); "
        "at the present price it is saved and stopped in 15 min"
    )
    assert budget_words(5_000_000, 5_000_000, 0.0).endswith("the run saves and stops")


@pytest.mark.parametrize(
    ("budget", "words"),
    [(0, "has to be above"), (-1, "has to be above"),
     (2_000_000, "\\$3.20 is spent already, so a budget of \\$2.00 cannot be kept"),
     (3_200_000, "is spent already")],
)  # fmt: skip
def test_a_budget_below_what_is_spent_says_so(budget, words):
    with pytest.raises(UsageError, match=words):
        check_budget(budget, 3_200_000)
    check_budget(3_200_001, 3_200_000)
