"""Named parts of a step: whose seconds they are, and their way out with the step's report."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from cloudshift_lab.training import Session
from cloudshift_lab.training.sections import MAX_NAME_CHARS, MAX_NAMES, Sections

from .conftest import AroundUs


class Clock:
    """Goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sections(clock: Clock) -> Sections:
    return Sections(clock)


def test_a_part_that_is_entered_again_adds_up(sections: Sections, clock: Clock) -> None:
    for seconds in (1.0, 2.0):
        clock.now += 10
        with sections.named("forward"):
            clock.now += seconds
    assert sections.take() == {"forward": 3.0}
    assert sections.take() is None


def test_each_second_counts_once_for_the_innermost_part(sections: Sections, clock: Clock) -> None:
    with sections.named("forward"):
        clock.now += 1
        with sections.named("attention"):
            clock.now += 2
            with sections.named("forward"):
                clock.now += 4
        clock.now += 8
    assert sections.take() == {"forward": 13.0, "attention": 2.0}


def test_a_part_that_ends_by_an_error_has_ended(sections: Sections, clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError), sections.named("forward"):
        clock.now += 1
        raise ZeroDivisionError
    clock.now += 5
    assert sections.take() == {"forward": 1.0}


def test_a_part_that_outlasts_the_step_is_shared_out(sections: Sections, clock: Clock) -> None:
    with sections.named("epoch"):
        clock.now += 1
        assert sections.take() == {"epoch": 1.0}
        clock.now += 2
    assert sections.take() == {"epoch": 2.0}


def test_phases_follow_one_another_and_parts_lie_within_them(
    sections: Sections, clock: Clock
) -> None:
    sections.phase("data")
    clock.now += 1
    sections.phase("forward")
    clock.now += 2
    with sections.named("attention"):
        clock.now += 4
    clock.now += 8
    sections.phase(None)
    clock.now += 16
    assert sections.take() == {"data": 1.0, "forward": 10.0, "attention": 4.0}


def test_what_is_skipped_is_nobodys(sections: Sections, clock: Clock) -> None:
    sections.phase("data")
    clock.now += 1
    sections.take()
    clock.now += 50
    sections.skip()
    clock.now += 2
    assert sections.take() == {"data": 2.0}


def test_names_without_end_become_one(sections: Sections, clock: Clock) -> None:
    for number in range(MAX_NAMES + 10):
        with sections.named(f"layer-{number}"):
            clock.now += 1
    spent = sections.take()
    assert spent is not None
    assert (len(spent), spent["other"], sum(spent.values())) == (MAX_NAMES + 1, 10.0, 42.0)
    with sections.named("layer-3"):
        clock.now += 1
    assert sections.take() == {"layer-3": 1.0}


def test_a_name_is_cut_where_a_row_would_outgrow_its_datagram(sections: Sections) -> None:
    with sections.named("x" * 1000):
        pass
    assert list(sections.take() or {}) == ["x" * MAX_NAME_CHARS]


def test_another_threads_part_raises_nothing_into_training(sections: Sections) -> None:
    part = sections.named("load")
    part.__enter__()
    thread = threading.Thread(target=lambda: part.__exit__(None, None, None))
    thread.start()
    thread.join()
    part.__exit__(None, None, None)
    with sections.named("forward"):
        pass
    assert "forward" in (sections.take() or {})


class Job:
    """A loop that times its parts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.session = Session(model=self.model, optimizer=self.optimizer)

    def step(self, *, is_timed: bool = True) -> None:
        if is_timed:
            with self.session.section("forward"):
                loss = (self.model(torch.ones(2, 4)) ** 2).mean()
                time.sleep(0.01)
        else:
            loss = (self.model(torch.ones(2, 4)) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.session.step(loss=loss)


def test_the_seconds_go_out_with_the_report_of_their_step(around: AroundUs) -> None:
    job = Job()
    with job.session.section("set-up"):
        time.sleep(0.01)
    for step in job.session.steps(4):
        job.step(is_timed=step != 2)
    rows = around.rows()
    assert [None if row.sections is None else list(row.sections) for row in rows] == [
        ["forward"], None, ["forward"], ["forward"],
    ]  # fmt: skip
    for row in rows:
        forward_s = (row.sections or {"forward": 0.01})["forward"]
        assert row.step_s is not None
        assert 0.01 <= forward_s <= row.step_s or row.step == 2


def test_a_loop_without_an_agent_may_time_its_parts_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = Job()
    for _ in job.session.steps(2):
        job.step()
    assert "nothing is saved" in capsys.readouterr().err
