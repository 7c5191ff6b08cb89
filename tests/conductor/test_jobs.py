from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudshift_lab.conductor.jobs import Jobs, Task
from cloudshift_lab.core.errors import NotFound, UsageError
from cloudshift_lab.core.steps import ENDED_JOB, JobView
from cloudshift_lab.core.world import REAL_WORLD


@pytest.fixture
def changes() -> list[int]:
    return []


@pytest.fixture
def jobs(changes: list[int]) -> Iterator[Jobs]:
    made = Jobs(REAL_WORLD, lambda: changes.append(1))
    yield made
    made.close()


def ended(jobs: Jobs, view: JobView) -> JobView:
    pause = threading.Event()
    for _ in range(3000):
        now = jobs.get(view.job_id)
        if now.state in ENDED_JOB:
            return now
        pause.wait(0.01)
    raise AssertionError("the job does not end")


def test_a_job_is_done_with_its_result(jobs: Jobs, changes: list[int]) -> None:
    def work(task: Task) -> object:
        task.tell(3, 7, "steps")
        return {"answer": 42}

    view = ended(jobs, jobs.start("sum", "adding", work))
    assert (view.state, view.done, view.total, view.unit) == ("done", 3, 7, "steps")
    assert bytes(view.result) == b'{"answer":42}'
    assert view.ended_at is not None
    assert changes


def test_a_job_that_fails_says_why_and_a_bug_says_where_to_look(
    jobs: Jobs, capfd: pytest.CaptureFixture[str]
) -> None:
    def wrong(task: Task) -> object:
        raise UsageError("that is no step; choose one")

    def bug(task: Task) -> object:
        return 1 // 0

    failed = ended(jobs, jobs.start("a", "a", wrong))
    assert failed.error is not None
    assert (failed.state, failed.error.kind) == ("failed", "UsageError")
    assert failed.error.message == "that is no step; choose one"
    broken = ended(jobs, jobs.start("b", "b", bug))
    assert broken.error is not None
    assert "ZeroDivisionError" in broken.error.message
    assert "conductor.log" in broken.error.message
    assert "1 // 0" in capfd.readouterr().err


@pytest.fixture
def hold() -> Iterator[Callable[[Task], object]]:
    """Work that goes on until it is cancelled or the test ends."""
    let_go = threading.Event()

    def work(task: Task) -> object:
        while not let_go.wait(0.01):
            task.tell(1, 2)
        return None

    yield work
    let_go.set()


def test_a_cancelled_job_ends_where_it_tells_next(jobs: Jobs, hold: Any) -> None:
    view = jobs.start("hold", "holding", hold)
    jobs.cancel(view.job_id)
    assert ended(jobs, view).state == "cancelled"
    assert jobs.cancel(view.job_id).state == "cancelled"


def test_a_job_that_waits_for_its_turn_can_be_cancelled_and_never_begins(
    jobs: Jobs, hold: Any
) -> None:
    first = [jobs.start("hold", "holding", hold) for _ in range(2)]
    begun: list[int] = []
    waiting = jobs.start("late", "late", lambda task: begun.append(1))
    assert jobs.cancel(waiting.job_id).state == "cancelled"
    for view in first:
        jobs.cancel(view.job_id)
        ended(jobs, view)
    assert ended(jobs, jobs.start("next", "next", lambda task: None)).state == "done"
    assert begun == []


def test_jobs_are_listed_newest_first_and_an_unknown_one_is_not_found(jobs: Jobs) -> None:
    views = [jobs.start("a", str(number), lambda task: None) for number in range(3)]
    for view in views:
        ended(jobs, view)
    assert [view.title for view in jobs.all()] == ["2", "1", "0"]
    with pytest.raises(NotFound, match=f"no job called 'job-x'.*{views[2].job_id}"):
        jobs.get("job-x")


def test_only_the_newest_jobs_are_remembered(jobs: Jobs) -> None:
    first = ended(jobs, jobs.start("a", "first", lambda task: None))
    for number in range(60):
        ended(jobs, jobs.start("a", str(number), lambda task: None))
    assert len(jobs.all()) <= 51
    with pytest.raises(NotFound):
        jobs.get(first.job_id)
