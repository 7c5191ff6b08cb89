"""A run's time, cause by cause: the parts add up to the whole, whatever happened."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from cloudshift_lab.health.course import Course, Ending, Happened, course_of
from cloudshift_lab.health.expected import Shown, expect
from cloudshift_lab.health.goodput import measured


@dataclass(frozen=True)
class Trained:
    began: float
    ended: float
    first_step: int
    last_step: int
    generation: int = 1
    kept_until: float | None = None
    stalled_s: float = 0.0


def trained(*sessions: Trained) -> list[Trained]:
    """Everything is kept unless a test says otherwise."""
    return [
        each if each.kept_until is not None else replace(each, kept_until=each.ended)
        for each in sessions
    ]


def seconds(course: Course) -> dict[str, float]:
    return {
        span.cause: round(course.total_s(span.cause), 6) for span in course.spans
    }  # fmt: skip


def is_whole(course: Course, begin: float, end: float) -> bool:
    assert course.spans[0].begin_s == begin
    return sum(seconds(course).values()) == pytest.approx(end - begin)


def test_a_run_that_only_trained_took_its_start_and_its_training() -> None:
    course = course_of(trained(Trained(10, 110, 1, 100)), Happened(0, now=110.2))
    assert seconds(course) == {"starting": 10, "training": 100}
    assert course.failures == ()


def test_a_lost_run_that_was_resumed_shows_detection_restart_and_lost_work() -> None:
    sessions = trained(
        Trained(10, 110, 1, 100, kept_until=100), Trained(160, 200, 91, 130, generation=2)
    )
    happened = Happened(0, endings=(Ending(115, "lost"),), starts=(150,), now=201)
    course = course_of(sessions, happened)
    assert seconds(course) == {
        "starting": 10, "training": 130, "lost work": 10, "detecting": 5, "restarting": 45,
    }  # fmt: skip
    assert is_whole(course, 0, 200)
    assert (course.failures, course.num_healed, course.lost_steps) == (((5, 45),), 0, 10)


def test_ranks_that_began_again_in_their_attempt_are_a_failure_that_healed() -> None:
    sessions = trained(Trained(0, 100, 1, 100, kept_until=99), Trained(104, 150, 100, 145))
    course = course_of(sessions, Happened(0, now=150))
    assert seconds(course) == {"training": 145, "lost work": 1, "restarting": 4}
    assert (course.failures, course.num_healed, course.lost_steps) == (((0, 4),), 1, 1)


@pytest.mark.parametrize(("heals", "cause", "num"), [((), "idle", 0), ((100,), "restarting", 1)])
def test_a_break_without_a_repeated_step_is_a_failure_only_if_the_ranks_began_anew(
    heals: tuple[int, ...], cause: str, num: int
) -> None:
    sessions = trained(Trained(0, 100, 1, 100), Trained(104, 150, 101, 146))
    course = course_of(sessions, Happened(0, heals=heals, now=150))
    assert seconds(course) == {"training": 146, cause: 4}
    assert (len(course.failures), course.num_healed) == (num, num)


def test_a_move_is_planned_and_so_is_one_that_was_rolled_back() -> None:
    sessions = trained(
        Trained(0, 100, 1, 100), Trained(103, 200, 101, 197), Trained(204, 300, 198, 293, 3)
    )
    happened = Happened(0, moves=((100.5, 102), (199, 203)), now=300)
    course = course_of(sessions, happened)
    assert seconds(course) == {"training": 293, "planned moves": 7}
    assert course.failures == ()


def test_a_stop_by_a_person_costs_its_last_save_and_is_idle_until_it_is_resumed() -> None:
    sessions = trained(Trained(0, 100, 1, 100), Trained(260, 300, 101, 140, generation=2))
    happened = Happened(
        0, endings=(Ending(102, "stopped"), Ending(301, "finished")), starts=(250,), now=900,
        is_over=True,
    )  # fmt: skip
    course = course_of(sessions, happened)
    assert seconds(course) == {"training": 140, "saving": 3, "idle": 148, "starting": 10}
    assert is_whole(course, 0, 301)


@pytest.mark.parametrize("state", ["failed", "lost"])
def test_a_run_that_ended_badly_counts_until_that_was_noticed(state: str) -> None:
    happened = Happened(0, endings=(Ending(107, state),), now=5000, is_over=True)
    course = course_of(trained(Trained(0, 100, 1, 100)), happened)
    assert seconds(course) == {"training": 100, "detecting": 7}
    assert course.failures == ((7, 0),)


def test_a_run_that_is_being_resumed_is_down_until_now() -> None:
    happened = Happened(0, endings=(Ending(103, "lost"),), starts=(110,), now=120)
    course = course_of(trained(Trained(0, 100, 1, 100)), happened)
    assert seconds(course) == {"training": 100, "detecting": 3, "restarting": 17}


def test_a_hang_is_down_time_and_a_step_under_way_is_not() -> None:
    sessions = trained(Trained(0, 100, 1, 100))
    assert seconds(course_of(sessions, Happened(0, now=104))) == {"training": 100}
    hung = course_of(sessions, Happened(0, now=130, is_still=True))
    assert seconds(hung) == {"training": 100, "detecting": 30}
    assert hung.failures == ((30, 0),)


def test_ranks_that_are_being_started_again_are_down_until_now() -> None:
    course = course_of(trained(Trained(0, 100, 1, 100)), Happened(0, heals=(100,), now=112))
    assert seconds(course) == {"training": 100, "restarting": 12}
    assert course.failures == ((0, 12),)


def test_saves_and_stalls_are_taken_from_the_training_they_were_in() -> None:
    sessions = trained(Trained(0, 100, 1, 100, stalled_s=20), Trained(100, 200, 101, 200))
    course = course_of(sessions, Happened(0, saving_s=10, now=200))
    assert seconds(course) == {"training": 170, "saving": 10, "idle": 20}
    assert is_whole(course, 0, 200)


def test_a_run_that_never_trained_has_only_begun() -> None:
    assert seconds(course_of([], Happened(5, now=65))) == {"starting": 60}
    ended = Happened(5, endings=(Ending(15, "failed"),), now=65, is_over=True)
    assert seconds(course_of([], ended)) == {"starting": 10}
    assert len(course_of([], ended).failures) == 1


def test_the_spans_of_overlapping_clocks_can_be_counted() -> None:
    sessions = trained(Trained(0, 100, 1, 100), Trained(99, 200, 101, 200, generation=2))
    course = course_of(sessions, Happened(0, now=200))
    assert measured(course.spans, num_failures=0).by_cause == {"training": 1.0}


def test_the_forecast_takes_what_was_measured_and_says_what_was_assumed() -> None:
    calm = course_of(trained(Trained(20, 120, 1, 100)), Happened(0, now=120))
    shown = Shown(step_s=1, save_s=0.5, interval_s=None, assumed_mtbf_s=36_000)
    found, basis = expect(calm, shown)
    assert 0.97 < found.share < 1
    assert found.by_cause["restarting"] == pytest.approx(20 / 36_000, rel=0.1)
    assert "10 h (assumed; 0 so far)" in basis[0]
    assert "best, by Daly" in basis[3]


def test_three_failures_are_enough_to_believe_the_run_and_not_the_table() -> None:
    sessions = trained(*(Trained(110 * n, 110 * n + 100, 100 * n + 1, 100 * n + 100, n)
                         for n in range(4)))  # fmt: skip
    happened = Happened(
        0, endings=tuple(Ending(110 * n + 102, "lost") for n in range(3)), now=430
    )  # fmt: skip
    course = course_of(sessions, happened)
    found, basis = expect(course, Shown(1, 0.1, 30, 36_000))
    assert len(course.failures) == 3
    assert "(measured, 3)" in basis[0]
    assert "2.0 s (measured)" in basis[1]
    assert "8.0 s (measured)" in basis[2]
    assert found.share < 0.9
