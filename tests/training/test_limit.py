"""Ranks under a limit: they hold after its step, say so, and do there what is asked of them."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.staging import RankState
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.training import Drained, Session

from .conftest import AroundUs

LIMIT_S = 60.0


class Loop:
    """A run in a thread of its own, so that the test can be its agent. Weight = step."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 4, bias=False)
        nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.step = 0
        self.is_drained = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, total: int) -> Loop:
        self._total = total
        self._thread.start()
        return self

    def end(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            session = Session(model=self.model, optimizer=self.optimizer)
            for step in session.steps(self._total):
                self.model.weight.grad = -torch.ones(4, 4)
                self.optimizer.step()
                self.step = step
                session.step(loss=float(step))
        except Drained:
            self.is_drained = True


@pytest.fixture(autouse=True)
def _no_departure(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The end of these tests is not the end of a rank; only its socket is closed."""
    calls: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", calls.append)
    yield
    for call in calls:
        if call.__name__ == "close":
            call()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def says(around: AroundUs, state: str, step: int) -> bool:
    try:
        found = around.state()
    except FileNotFoundError:
        return False
    return (found.state, found.step) == (state, step)


def weight_of(around: AroundUs, step: int) -> set[float]:
    read = read_slot(around.node_dir, 0, step)
    return set(np.frombuffer(read.buffers[0], dtype=np.float32).tolist())


def is_staged(around: AroundUs, step: int) -> bool:
    try:
        read_slot(around.node_dir, 0, step)
    except NotFound:
        return False
    return True


def word(around: AroundUs, **changes: object) -> None:
    around.say(serial=around.control.serial + 1, **changes)


def test_ranks_hold_after_the_limit_and_go_on_when_it_is_raised_or_lifted(
    around: AroundUs,
) -> None:
    word(around, limit=5)
    loop = Loop().start(12)
    until(lambda: says(around, "held", 5))
    assert loop.step == 5
    word(around, limit=7)
    until(lambda: says(around, "held", 7))
    assert loop.step == 7
    word(around, limit=None)
    loop.end()
    assert loop.step == 12
    assert around.state().state == "finished"


def test_ranks_of_several_nodes_hear_of_a_raised_limit_without_a_word_of_their_own_agent(
    around: AroundUs,
) -> None:
    placement = msgspec.structs.replace(around.job.placement, nodes=2)
    around.job = msgspec.structs.replace(around.job, placement=placement)
    around.job_file.write_bytes(to_json(around.job))
    word(around, limit=5)
    loop = Loop().start(8)
    until(lambda: says(around, "held", 5))
    around.say(limit=None)  # the same serial: as if only a rank of another node had heard it
    loop.end()
    assert loop.step == 8


def test_a_limit_that_is_reached_before_the_first_step_holds_the_ranks_there(
    around: AroundUs,
) -> None:
    word(around, limit=0)
    loop = Loop().start(3)
    until(lambda: says(around, "held", 0))
    assert loop.step == 0
    word(around, limit=None)
    loop.end()
    assert loop.step == 3


def test_a_limit_after_the_very_last_step_keeps_the_ranks_from_finishing(
    around: AroundUs,
) -> None:
    word(around, limit=3)
    loop = Loop().start(3)
    until(lambda: says(around, "held", 3))
    assert not is_staged(around, 3)
    word(around, limit=None)
    loop.end()
    assert around.state() == RankState(0, "finished", 3)
    assert weight_of(around, 3) == {3.0}


def test_a_save_asked_for_under_a_limit_is_of_the_step_at_which_the_ranks_hold(
    around: AroundUs,
) -> None:
    word(around, limit=5, capture=1)
    loop = Loop().start(9)
    until(lambda: is_staged(around, 5))
    assert weight_of(around, 5) == {5.0}
    assert loop.step == 5
    assert not any(is_staged(around, step) for step in (1, 2, 3, 4))  # the policy: each third
    word(around, limit=None)
    loop.end()


def test_a_save_asked_for_together_with_the_end_of_the_limit_is_of_the_held_step(
    around: AroundUs,
) -> None:
    word(around, limit=5)
    loop = Loop().start(1_000_000)
    until(lambda: says(around, "held", 5))
    word(around, limit=None, capture=1)
    until(lambda: loop.step > 7)
    assert weight_of(around, 5) == {5.0}
    word(around, drain=True)
    loop.end()
    assert loop.is_drained


def test_a_save_asked_for_while_the_one_before_is_not_committed_is_taken_after_that(
    around: AroundUs,
) -> None:
    word(around, limit=5, capture=1)
    loop = Loop().start(9)
    until(lambda: is_staged(around, 5))
    word(around, limit=6, capture=2)
    until(lambda: says(around, "held", 6))
    assert not is_staged(around, 6)
    word(around, released_step=5)
    until(lambda: is_staged(around, 6))
    assert weight_of(around, 6) == {6.0}
    word(around, limit=None)
    loop.end()


@pytest.mark.parametrize("limit", [0, 4])
def test_ranks_that_hold_are_drained_where_they_are(around: AroundUs, limit: int) -> None:
    word(around, limit=limit)
    loop = Loop().start(9)
    until(lambda: says(around, "held", limit))
    word(around, drain=True)
    loop.end()
    assert loop.is_drained
    assert around.state().state == "drained"
    assert weight_of(around, limit) == {float(limit)}


def test_steps_under_a_limit_are_marked_and_their_waits_are_not_their_duration(
    around: AroundUs,
) -> None:
    around.job = msgspec.structs.replace(around.job, save_policy="1h")
    around.job_file.write_bytes(to_json(around.job))
    word(around, limit=2)
    loop = Loop().start(4)
    until(lambda: says(around, "held", 2))
    held_s = 1.0
    time.sleep(held_s)
    word(around, limit=None)
    loop.end()
    rows = around.rows()
    assert [(row.step, row.rehearsed) for row in rows] == [
        (1, True), (2, True), (3, False), (4, False),
    ]  # fmt: skip
    gap_s = rows[2].ts - rows[1].ts
    assert gap_s > held_s
    assert rows[2].step_s is not None and rows[2].step_s < gap_s - 0.9 * held_s


def test_a_limit_that_is_set_while_the_ranks_run_freely_makes_them_hold(around: AroundUs) -> None:
    loop = Loop().start(1_000_000)
    until(lambda: loop.step > 3)
    word(around, limit=1)
    until(lambda: around.state().state == "held")
    assert around.state().step == loop.step > 1
    word(around, drain=True)
    loop.end()
