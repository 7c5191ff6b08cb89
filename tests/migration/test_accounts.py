"""What a saga counts: bytes that came to nothing, and the limit that a person approved."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.core.plan import Phase
from cloudshift_lab.migration import (
    Aborted,
    Decided,
    EffectDone,
    EffectFailed,
    Event,
    Noticed,
    Overspent,
    Saga,
    step,
)
from cloudshift_lab.migration.deciding import ASK_AGAIN_S
from cloudshift_lab.sim.plans import (
    Wanted,
    sample_bill,
    sample_decision,
    sample_fallback,
)

from .test_live import Move

GB = 10**9
ELSEWHERE = Wanted(missing_nodes="elsewhere", fallbacks=(sample_fallback(),))
ASKED = Wanted(rehearsal_steps=3, limit_micro_usd=50_000)


def asking(wanted: Wanted = ASKED, **more: float | int) -> Move:
    """A move whose rehearsal made its bill much worse."""
    move = Move(wanted).done("provision", "precopy")
    told = EffectDone("rehearse", 1_010.0, bill=sample_bill(2_000_000), step_s=0.5)
    return move.tell(msgspec.structs.replace(told, **more))


def approve(saga: Saga) -> Saga:
    return step(saga, Decided(sample_decision(saga.plan, decision_id="again"), 1_011.0))[0]


@pytest.mark.parametrize(
    ("event", "phase"),
    [
        (EffectFailed("precopy", 1_010.0, "Corrupt", "no", num_bytes=5 * GB), "rolling_back"),
        (Aborted(1_010.0, num_bytes=5 * GB), "rolling_back"),
        (Overspent(1_010.0, 60_000, num_bytes=5 * GB), "rolling_back"),
        (Noticed("target", 1_010.0, 1_040.0, num_bytes=5 * GB), "rolling_back"),
        (Noticed("source", 1_010.0, 1_040.0, num_bytes=5 * GB), "draining"),
    ],
)
def test_bytes_of_an_effect_that_ends_early_were_paid_for(event: Event, phase: Phase) -> None:
    move = Move().done("provision").tell(event)
    assert (move.saga.phase, move.saga.bytes_moved) == (phase, 5 * GB)


def test_bytes_of_every_try_are_counted_together() -> None:
    lost = EffectFailed("precopy", 1_010.0, "NodesMissing", "no", nodes_up=1, num_bytes=5 * GB)
    move = Move(ELSEWHERE).done("provision").tell(lost).done("release", "provision")
    move.tell(EffectDone("precopy", 1_020.0, num_bytes=2 * GB))
    assert (move.saga.tries, move.saga.bytes_moved) == (1, 7 * GB)


def test_bytes_of_an_effect_that_goes_on_are_not_counted_twice() -> None:
    move = Move().done("provision", "precopy", "drain")
    move.tell(Noticed("source", 1_010.0, 1_040.0, num_bytes=5 * GB))
    assert (move.saga.effect, move.saga.bytes_moved) == ("copy", 0)


def test_an_event_that_comes_too_late_counts_nothing() -> None:
    move = Move().done("provision").tell(Aborted(1_010.0, num_bytes=1))
    move.tell(EffectFailed("precopy", 1_011.0, "Corrupt", "no", num_bytes=7))
    assert move.saga.bytes_moved == 1


def test_a_new_bill_brings_its_own_limit_that_counts_once_it_is_approved() -> None:
    saga = asking(limit_micro_usd=90_000).saga
    assert (saga.plan.limit_micro_usd, saga.limit_micro_usd) == (90_000, 50_000)
    assert approve(saga).limit_micro_usd == 90_000


def test_a_new_bill_without_a_limit_of_its_own_keeps_the_old_one() -> None:
    saga = asking().saga
    assert (saga.plan.limit_micro_usd, saga.limit_micro_usd) == (50_000, 50_000)
    assert approve(saga).limit_micro_usd == 50_000


def test_too_much_spent_while_asking_names_the_limit_that_was_approved() -> None:
    move = asking(limit_micro_usd=90_000).tell(Overspent(1_030.0, 60_000))
    assert move.saga.error is not None and "its limit is $0.0500" in move.saga.error


@pytest.mark.parametrize(("told", "stands_s"), [({}, ASK_AGAIN_S), ({"ask_s": 9_000.0}, 9_000.0)])
def test_a_question_stands_as_long_as_it_is_told_to(
    told: dict[str, float], stands_s: float
) -> None:
    assert asking(**told).saga.plan.expires_at == 1_010.0 + stands_s
