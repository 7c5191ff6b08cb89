"""An hour is worth little while there is slack, and more than on demand when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.market.places import Look, Task
from cloudshift_lab.market.slack import Slack, hour_worth_usd, slack_of
from cloudshift_lab.market.tuning import Tuning

TASK = Task(work_h=40.0, deadline_h=60.0, start_h=0.2, tick_h=0.25)
TUNING = Tuning()


def slack(at_h: float, done_h: float = 0.0, overhead_h: float = 0.0, task: Task = TASK) -> Slack:
    look = Look(at_h, done_h, np.array([1.0]), np.array([True]))
    return slack_of(task, TUNING, look, overhead_h)


def worth(found: Slack) -> float:
    return hour_worth_usd(found, TUNING, usual_usd_h=2.0, dearest_usd_h=10.0)


def test_at_the_beginning_an_hour_is_worth_a_little_more_than_the_usual_price() -> None:
    assert slack(0.0).used == pytest.approx(0.0)
    assert worth(slack(0.0)) == pytest.approx(2.0 * TUNING.lowest)


def test_a_job_on_the_line_has_used_nothing() -> None:
    assert slack(30.0, 20.0).used < 0.1


def test_waiting_makes_an_hour_worth_more() -> None:
    worths = [worth(slack(at_h)) for at_h in (0.0, 5.0, 10.0, 15.0, 19.0, 20.0)]
    assert worths == sorted(worths)
    assert worths[-1] == pytest.approx(10.0 * TUNING.anxiety)


def test_restarts_count_against_the_slack() -> None:
    assert slack(20.0, 12.0, overhead_h=6.0).used > slack(20.0, 12.0).used
    assert slack(20.0, 12.0, overhead_h=6.0).overhead > TUNING.overhead


def test_without_a_deadline_nothing_is_urgent() -> None:
    endless = Task(work_h=40.0, deadline_h=float("inf"), start_h=0.2, tick_h=0.25)
    assert worth(slack(1e6, task=endless)) == pytest.approx(2.0 * TUNING.lowest)


def test_spot_as_dear_as_on_demand_leaves_the_worth_below_on_demand() -> None:
    calm = Slack(0.0, 0.0, 0.03)
    assert hour_worth_usd(calm, TUNING, usual_usd_h=10.0, dearest_usd_h=10.0) == pytest.approx(9.0)


@given(at_h=st.floats(0, 60), later_h=st.floats(0, 10), done_h=st.floats(0, 39))
def test_time_alone_never_makes_an_hour_worth_less(
    at_h: float, later_h: float, done_h: float
) -> None:
    assert worth(slack(at_h + later_h, done_h)) >= worth(slack(at_h, done_h)) - 1e-9
