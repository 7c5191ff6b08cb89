"""Goals, medians and the table."""

import math
from pathlib import Path

import pytest

from cloudshift_lab.sim.bench.rows import (
    Machine,
    Result,
    at_least,
    at_most,
    exactly,
    median,
    percentile,
    row,
    untimed,
)
from cloudshift_lab.sim.bench.surroundings import commit, machine, versions
from cloudshift_lab.sim.bench.table import number, table


@pytest.mark.parametrize(
    "goal, good, bad",
    [(at_most(1.05), 1.05, 1.06), (at_least(8.0), 8.0, 7.99), (exactly(0), 0, 1)],
)
def test_a_goal_is_met_or_missed(goal, good, bad):
    assert row("x", good, "s", goal=goal).passed is True
    assert row("x", bad, "s", goal=goal).passed is False
    assert row("x", math.nan, "s", goal=goal).passed is False
    assert row("x", bad, "s").passed is None


def test_nothing_measured_is_not_a_figure():
    assert math.isnan(median([])) and math.isnan(percentile([], 0.99))
    assert (median([3, 1, 2]), percentile([3, 1, 2], 0.5), percentile([3, 1, 2], 0.99)) == (2, 2, 3)


def test_a_table_has_every_row_its_goal_and_what_was_missed():
    rows = (
        row("stall", 7.25, "ms", goal=at_most(5)),
        row("bytes", 1.0, "x", goal=at_most(1.05), note="of what is stored"),
        row("rival", 290.0, "ms", samples=(280, 300)),
    )
    here = Machine("A CPU", 2, 8 * 2**30, 0.5, "Linux")
    result = Result(
        bench="restore", size="full", command="c", date="2026-01-01", commit="abc", machine=here,
        versions={"torch": "2"}, seconds=1.0, rows=rows,
    )  # fmt: skip
    text = table(result)
    assert not result.passed
    for part in ("MISSED", "<= 5", "ok", "290", "of what is stored", "torch 2", "2 x A CPU"):
        assert part in text
    late = untimed([row("stall", 7.25, "ms", goal=at_most(5), full_only=True), rows[1]])
    assert [each.passed for each in late] == [None, True]


def test_numbers_have_the_digits_they_deserve():
    shown = [number(v) for v in (0, 1234567, 0.00345, 1.5, 123.456, 1234.5, math.nan)]
    assert shown == ["0", "1,234,567", "0.0034", "1.50", "123.5", "1,234", "none"]


def test_surroundings_name_no_folder_of_this_machine():
    text = repr((machine(), commit(), versions()))
    assert str(Path.cwd()) not in text and str(Path.home()) not in text
