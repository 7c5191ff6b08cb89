from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudshift_lab.conductor.registry import Ticker


class Tender:
    """A run of which only the tick matters."""

    def __init__(self, run_id: str, work: Callable[[], None], *, is_live: bool = True) -> None:
        self.run_id = run_id
        self.is_live = is_live
        self.open_move = None
        self.trouble: str | None = None
        self.ticks = threading.Semaphore(0)
        self._work = work

    def tick(self) -> None:
        self.ticks.release()
        self._work()


class Tenders:
    def __init__(self, *tenders: Tender) -> None:
        self._tenders = tenders

    def all(self) -> tuple[Tender, ...]:
        return self._tenders


@pytest.fixture
def start() -> Iterator[Callable[..., Ticker]]:
    made: list[Ticker] = []

    def begin(*tenders: Tender) -> Ticker:
        registry: Any = Tenders(*tenders)
        made.append(Ticker(registry))
        made[-1].start()
        return made[-1]

    yield begin
    for ticker in made:
        ticker.stop()


def test_a_run_that_waits_for_its_store_holds_up_no_other(start: Callable[..., Ticker]) -> None:
    release = threading.Event()
    hanging = Tender("run-1", lambda: release.wait(60) and None)
    lively = Tender("run-2", lambda: None)
    start(hanging, lively)
    for _ in range(4):
        assert lively.ticks.acquire(timeout=30)
    assert hanging.ticks.acquire(timeout=30)
    assert not hanging.ticks.acquire(blocking=False)
    release.set()
    assert hanging.ticks.acquire(timeout=30)


def test_a_run_with_nothing_left_to_do_is_not_ticked(start: Callable[..., Ticker]) -> None:
    settled = Tender("run-1", lambda: None, is_live=False)
    lively = Tender("run-2", lambda: None)
    start(settled, lively)
    for _ in range(3):
        assert lively.ticks.acquire(timeout=30)
    assert not settled.ticks.acquire(blocking=False)


def test_our_own_bug_is_shown_with_the_run_logged_and_survived(
    start: Callable[..., Ticker], capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        tender.is_live = False
        raise ZeroDivisionError("oops")

    tender = Tender("run-1", broken)
    ticker = start(tender)
    assert tender.ticks.acquire(timeout=30)
    ticker._pool.shutdown(wait=True)
    assert tender.trouble == "the conductor failed (oops); see conductor.log"
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_decision_does_not_wait_for_the_next_round(start: Callable[..., Ticker]) -> None:
    tender = Tender("run-1", lambda: None)
    ticker = start(tender)
    for _ in range(20):
        ticker.wake()
        assert tender.ticks.acquire(timeout=30)
