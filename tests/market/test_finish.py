"""The forecast of a run's whole cost: its median is the pace it had, its range covers chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.finish import finish_at_step, pace_blocks

NOW = 1_700_000_000.0


def finish(blocks, **changes):
    known = {
        "step": 100, "until_step": 200, "spent_micro_usd": 1_000_000, "micro_usd_per_h": 3_600_000,
        "now": NOW,
    }  # fmt: skip
    return finish_at_step(blocks, **(known | changes))


def test_an_even_pace_gives_one_answer():
    found = finish(((10, 20.0), (10, 20.0), (10, 20.0)))
    assert found is not None
    assert found.total_micro_usd.p10 == found.total_micro_usd.p90 == 1_200_000
    assert found.finish_at.p50 == NOW + 200
    assert "100 steps x 2 s" in found.basis


def test_an_uneven_pace_gives_a_wide_one():
    found = finish(((10, 10.0), (10, 30.0), (10, 20.0)))
    assert found is not None
    low, mid, high = (
        found.total_micro_usd.p10, found.total_micro_usd.p50, found.total_micro_usd.p90,
    )  # fmt: skip
    assert low < mid == 1_200_000 < high


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 500)), min_size=1, max_size=12),
    st.integers(101, 10_000),
)
def test_the_range_is_ordered_and_never_below_what_is_spent(blocks, until_step):
    found = finish(tuple(blocks), until_step=until_step)
    assert found is not None
    cost = found.total_micro_usd
    assert 1_000_000 <= cost.p10 <= cost.p50 <= cost.p90


def test_four_of_five_runs_end_in_the_range():
    """2,000 runs whose steps take as long as they please around their own mean."""
    world = np.random.default_rng(7)
    inside = 0
    for _ in range(2000):
        step_s = world.gamma(9.0, 2.0 / 9.0, 1000)
        at = np.cumsum(step_s)
        blocks = pace_blocks(at[:300].tolist(), list(range(1, 301)))
        found = finish(blocks, step=300, until_step=1000, spent_micro_usd=0)
        assert found is not None
        truth = float(step_s[300:].sum()) * 1000
        inside += found.total_micro_usd.p10 <= truth <= found.total_micro_usd.p90
    assert 0.75 <= inside / 2000 <= 0.85


def test_steps_that_are_done_again_are_time_and_no_progress():
    blocks = pace_blocks([1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0], [1, 2, 3, 2, 3, 4, 5])
    assert sum(steps for steps, _ in blocks) == 4
    assert sum(seconds for _, seconds in blocks) == 12.0


def test_without_a_pace_there_is_no_forecast():
    assert pace_blocks([1.0, 2.0], [1, 2]) == ()
    assert finish(()) is None


def test_a_step_that_is_past_is_refused():
    with pytest.raises(UsageError, match="at step 100 already"):
        finish(((10, 1.0),), until_step=100)
