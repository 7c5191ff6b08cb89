"""The net counts every hour that may be needed before it lets a job take a risk."""

from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.places import Choice, Look, Places, Task
from cloudshift_lab.market.safety import SafetyNet

NEAR, FAR = 0, 1


def places(on_demand: tuple[float, float] = (10.0, 9.0), carry_usd: float = 5.0) -> Places:
    between = np.array([[0.0, carry_usd], [carry_usd, 0.0]])
    return Places.of(("near", "far"), ("n", "f"), np.array(on_demand), between)


def look(at_h: float, done_h: float, running: Choice | None = None, **more: float | int) -> Look:
    starting_h, home = float(more.get("starting_h", 0.0)), more.get("home")
    return Look(
        at_h, done_h, np.array([3.0, 2.0]), np.array([True, True]), running, starting_h,
        None if home is None else int(home),
    )  # fmt: skip


TASK = Task(work_h=10.0, deadline_h=12.0, start_h=0.25, tick_h=0.5)


def test_a_job_may_wait_while_a_start_and_the_rest_still_fit_behind_the_tick() -> None:
    net = SafetyNet.of(places(), TASK)
    assert net.may_wait(look(1.25, 0.0))
    assert not net.may_wait(look(1.26, 0.0))


def test_a_transfer_is_counted_before_the_fallback_trains() -> None:
    away = np.array([[0.0, 1.0], [1.0, 0.0]])
    only_far = Places.of(
        ("near", "far"), ("n", "f"), np.array([np.inf, 9.0]), np.zeros((2, 2))
    )  # fmt: skip
    net = SafetyNet(only_far, TASK, away)
    assert net.may_wait(look(0.25, 0.0, home=NEAR))
    assert not net.may_wait(look(0.26, 0.0, home=NEAR))
    assert net.may_wait(look(0.26, 0.0, home=FAR))


def test_training_that_a_preemption_undoes_does_not_count() -> None:
    at_h = 1.4
    assert SafetyNet.of(places(), TASK).may_start(look(at_h, 0.0)).all()
    assert not SafetyNet.of(places(), TASK, undone_h=1.0).may_start(look(at_h, 0.0)).any()


def test_what_runs_may_stay_longer_than_a_new_start_may_be_made() -> None:
    net = SafetyNet.of(places(), TASK)
    running = look(2.3, 1.0, Choice(NEAR, "spot"), home=NEAR)
    assert not net.may_wait(running)
    assert net.may_stay(look(2.6, 1.0, Choice(NEAR, "spot"), home=NEAR))
    assert not net.may_start(look(2.6, 1.0, Choice(NEAR, "spot"), home=NEAR)).any()


def test_the_last_tick_may_be_spent_on_spot_machines() -> None:
    net = SafetyNet.of(places(), TASK)
    assert net.may_stay(look(11.5, 9.5, Choice(NEAR, "spot"), home=NEAR))
    assert not net.may_stay(look(11.5, 9.4, Choice(NEAR, "spot"), home=NEAR))


def test_the_fallback_is_the_cheapest_place_with_its_egress_that_is_in_time() -> None:
    assert SafetyNet.of(places(), TASK).fallback(look(0, 0, home=NEAR)) == Choice(FAR, "on-demand")
    dear = SafetyNet.of(places(carry_usd=50.0), TASK)
    assert dear.fallback(look(0, 0, home=NEAR)) == Choice(NEAR, "on-demand")
    slow = SafetyNet(places(), TASK, np.array([[0.0, 5.0], [5.0, 0.0]]))
    assert slow.fallback(look(0, 0, home=NEAR)) == Choice(NEAR, "on-demand")


def test_what_runs_on_demand_is_its_own_fallback() -> None:
    running = Choice(NEAR, "on-demand")
    assert SafetyNet.of(places(), TASK).fallback(look(0, 0, running, home=NEAR)) == running


def test_a_slower_place_is_no_fallback_when_only_the_fast_one_is_in_time() -> None:
    two = Places.of(
        ("slow", "fast"), ("s", "f"), np.array([1.0, 9.0]), np.zeros((2, 2)), np.array([0.5, 1.0])
    )  # fmt: skip
    assert SafetyNet.of(two, TASK).fallback(look(0.0, 0.0)) == Choice(1, "on-demand")
    assert SafetyNet.of(two, TASK).fallback(look(0.0, 9.0)) == Choice(0, "on-demand")


def test_a_late_job_takes_the_place_that_is_done_first() -> None:
    net = SafetyNet(places(), TASK, np.array([[0.0, 5.0], [5.0, 0.0]]))
    assert net.fallback(look(11.0, 0.0, home=FAR)) == Choice(FAR, "on-demand")


@pytest.mark.parametrize(
    ("deadline_h", "work_h", "says"),
    [(5.0, 6.0, "give the job a later deadline"), (5.0, 0.0, "needs work"), (5.0, -1.0, "needs")],
)
def test_an_impossible_job_is_refused(deadline_h: float, work_h: float, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Task(work_h=work_h, deadline_h=deadline_h, start_h=0.1, tick_h=0.1)


@pytest.mark.parametrize("bad", [0.0, -3.0, float("nan")])
def test_a_price_that_is_not_one_is_refused(bad: float) -> None:
    with pytest.raises(UsageError, match="price on demand"):
        places(on_demand=(10.0, bad))
    with pytest.raises(UsageError, match="egress"):
        places(carry_usd=-1.0 if bad <= 0 else bad)


def test_no_place_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no place"):
        Places.of((), (), np.array([]), np.zeros((0, 0)))
