from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cloudshift_lab.conductor.fortune import Fortune
from cloudshift_lab.core.asks import FuturesAsk
from cloudshift_lab.core.plan import Futures
from cloudshift_lab.sim.plans import sample_plan

ASK = FuturesAsk(plan=sample_plan(), step_s=0.5, state_bytes=10**8, num=20)


@pytest.fixture
def made() -> Iterator[list[Fortune]]:
    fortunes: list[Fortune] = []
    yield fortunes
    for fortune in fortunes:
        fortune.close()


def tell(fortune: Fortune, wait_s: float = 60.0) -> Futures | None:
    """The futures; None when the teller gave up (it then tells the next one nothing either)."""
    told: list[Futures] = []
    there = threading.Event()

    def take(futures: Futures) -> None:
        told.append(futures)
        there.set()

    fortune.tell(ASK, take)
    fortune._pool.submit(there.set)
    assert there.wait(wait_s)
    return told[0] if told else None


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_the_simulation_of_this_product_draws_them(made: list[Fortune]) -> None:
    made.append(Fortune())
    futures = tell(made[0])
    assert futures is not None
    assert futures.num == 20
    assert futures.pause_s.p10 <= futures.pause_s.p50 <= futures.pause_s.p90


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('no dice')", "no dice"),
        ("print('{')", "the futures"),
        ("import time; time.sleep(60)", "longer than 1 s"),
    ],
)
def test_what_cannot_be_drawn_is_logged_and_the_next_plan_is_not_held_up(
    made: list[Fortune], capfd: Any, code: str, why: str
) -> None:
    made.append(Fortune(deadline_s=1.0 if "sleep" in code else 30.0, command=python(code)))
    assert tell(made[0]) is None
    said = capfd.readouterr().err
    assert "no futures of mig-1" in said
    assert why in said


def test_a_program_that_is_not_there_is_no_reason_to_stop(made: list[Fortune], capfd: Any) -> None:
    made.append(Fortune(command=("/nowhere/at/all",)))
    assert tell(made[0]) is None
    assert "cannot be drawn here" in capfd.readouterr().err


def test_closing_ends_what_is_being_drawn() -> None:
    fortune = Fortune(command=python("import time; time.sleep(600)"))
    fortune.tell(ASK, lambda _futures: None)
    until = time.monotonic() + 60
    while fortune._process is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    process = fortune._process
    fortune.close()
    assert process.wait(60) != 0
