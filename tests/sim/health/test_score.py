import math

import numpy as np
import pytest

from cloudshift_lab.sim.health.score import Counts, area_under_curve, folds, spread, wilson


def test_precision_and_recall_count_what_was_said_and_what_there_was() -> None:
    counts = Counts(8, 2, 0) + Counts(0, 0, 8)
    assert (counts.precision, counts.recall) == (0.8, 0.5)
    assert counts.f1 == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    assert math.isnan(Counts().precision)
    assert math.isnan(Counts().recall)


def test_the_area_is_one_for_a_perfect_order_a_half_for_none() -> None:
    happened = np.array([0.0, 0.0, 1.0, 1.0])
    assert area_under_curve(happened, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert area_under_curve(happened, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    assert area_under_curve(happened, np.ones(4)) == 0.5
    assert math.isnan(area_under_curve(np.ones(4), np.ones(4)))


def test_folds_are_even_and_the_same_each_time() -> None:
    assert sorted(np.bincount(folds(23).astype(int))) == [4, 4, 5, 5, 5]
    assert (folds(23) == folds(23)).all()


def test_an_interval_holds_its_share_and_narrows() -> None:
    low, high = wilson(9, 10)
    assert low < 0.9 < high
    assert wilson(900, 1000)[1] - wilson(900, 1000)[0] < high - low
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_spread_leaves_out_what_is_not_known() -> None:
    assert spread([0.5, math.nan, 0.75]) == "0.50 to 0.75"
    assert spread([math.nan]) == "none"
