"""Rehearsals, replays, forced stops, missing nodes, worse bills, approvals and limits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloudshift_lab.core.errors import StaleDecision, UsageError
from cloudshift_lab.core.plan import Closing
from cloudshift_lab.migration import (
    LOSS_TOLERANCE,
    Aborted,
    Decided,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
    Noticed,
    Overspent,
    Saga,
    check_decision,
    compare,
    fold,
    make_receipt,
    pending,
    start,
    step,
    view,
    with_digest,
)
from cloudshift_lab.sim.plans import (
    Wanted,
    sample_bill,
    sample_decision,
    sample_fallback,
    sample_plan,
)

REPLAY = Wanted(closing="replay", rehearsal_steps=3)
REHEARSED = Wanted(rehearsal_steps=3)
NOTICE = Noticed("source", 1_020.0, 1_050.0)


class Move:
    """A saga with its events, told in short words."""

    def __init__(self, wanted: Wanted | None = None) -> None:
        self.plan = sample_plan(wanted=wanted)
        self.saga = start(self.plan)
        self.at = 1_001.0
        self.decide()

    def tell(self, event: Event) -> Move:
        self.saga, _ = step(self.saga, event)
        return self

    def decide(self, verdict: str = "approve", by: str = "ada") -> Move:
        name = f"{by}-{len(self.saga.earlier)}"
        decision = sample_decision(self.saga.plan, verdict, by=by, decision_id=name)  # type: ignore[arg-type]
        return self.tell(Decided(decision, self.at))

    def done(self, *names: EffectName) -> Move:
        for name in names:
            self.at += 1.0
            sealed = 40 if name == "drain" else None
            self.tell(EffectDone(name, self.at, step=sealed, step_at=self.at))
        return self

    def fail(self, name: EffectName, kind: str, nodes_up: int | None = None) -> Move:
        self.at += 1.0
        return self.tell(EffectFailed(name, self.at, kind, f"{name}: no", nodes_up))

    def measure(self, name: EffectName, total_micro_usd: int) -> Move:
        self.at += 1.0
        return self.tell(EffectDone(name, self.at, bill=sample_bill(total_micro_usd), step_s=0.5))

    def way(self) -> list[str]:
        """Every effect from here on, when all succeed."""
        names: list[str] = []
        while self.saga.effect is not None:
            names.append(self.saga.effect)
            self.done(self.saga.effect)
        return names


# -- closings ------------------------------------------------------------------------------


def test_a_rehearsal_comes_before_the_seal_and_a_copy_after_it() -> None:
    assert Move(REHEARSED).way() == [
        "provision", "precopy", "rehearse", "drain", "copy", "verify", "commit", "go", "retire",
    ]  # fmt: skip


def test_a_replay_catches_up_instead_of_copying() -> None:
    move = Move(REPLAY)
    assert move.saga.shadows
    assert move.way() == [
        "provision", "precopy", "rehearse", "drain", "catch_up", "commit", "go", "retire",
    ]  # fmt: skip
    assert move.saga.phase == "source_retired"


@pytest.mark.parametrize("kind", ["Mismatch", "Exhausted"])
def test_a_replay_that_ends_elsewhere_is_replaced_by_a_copy(kind: str) -> None:
    move = Move(REPLAY).done("provision", "precopy", "rehearse", "drain").fail("catch_up", kind)
    assert move.saga.closing == "copy"
    assert move.saga.phase == "copying"
    assert move.way() == ["copy", "verify", "commit", "go", "retire"]


def test_a_rehearsal_with_another_loss_rolls_back() -> None:
    move = Move(REHEARSED).done("provision", "precopy").fail("rehearse", "Mismatch")
    assert move.way() == ["cancel", "resume", "release"]


def rehearsed_apart(wanted: Wanted = REPLAY, **more: Any) -> Move:
    move = Move(wanted).done("provision", "precopy")
    told = "not bit by bit: largest relative difference 3e-05 at step 14 (within 0.001)"
    return move.tell(
        EffectDone("rehearse", 1_010.0, detail=told, apart=3e-5, apart_step=14, **more)
    )


def test_steps_that_were_not_repeated_bit_by_bit_are_copied() -> None:
    move = rehearsed_apart()
    assert (move.saga.closing, move.saga.plan.closing) == ("copy", "replay")
    assert not move.saga.shadows
    assert "not bit by bit" in move.saga.timeline[-1].detail
    assert move.way() == ["drain", "copy", "verify", "commit", "go", "retire"]


def test_a_receipt_says_how_far_a_rehearsal_was_apart_and_what_was_forecast() -> None:
    move = rehearsed_apart()
    move.way()
    receipt = make_receipt(move.saga, at=2_000.0)
    assert (receipt.apart, receipt.apart_step) == (3e-5, 14)
    assert receipt.tolerance == move.plan.tolerance
    assert (receipt.plan.closing, receipt.closing) == ("replay", "copy")
    exact = Move(REPLAY)
    exact.way()
    assert make_receipt(exact.saga, at=2_000.0).apart is None


def test_a_new_bill_does_not_hide_that_the_losses_were_apart() -> None:
    move = rehearsed_apart(bill=sample_bill(9_000_000))
    assert move.saga.phase == "asking"
    assert "not bit by bit" in move.saga.timeline[-1].detail
    assert "the bill is" in move.saga.timeline[-1].detail


def test_what_a_target_that_was_given_up_computed_says_nothing_of_the_next() -> None:
    wanted = Wanted(closing="replay", rehearsal_steps=3, missing_nodes="wait", nodes=4)
    move = rehearsed_apart(wanted)
    move.tell(EffectFailed("drain", 1_011.0, "NotFound", "gone"))
    assert move.saga.phase == "rolling_back"
    again = Move(wanted).done("provision", "precopy").fail("rehearse", "NodesMissing", 3)
    assert (again.saga.apart, again.saga.closing) == (None, "replay")


@pytest.mark.parametrize(
    ("nodes_up", "closing", "tolerance"), [(1, "replay", 0.0), (2, "copy", LOSS_TOLERANCE)]
)
def test_a_shrunk_target_is_held_to_what_its_size_can_do(
    nodes_up: int, closing: str, tolerance: float
) -> None:
    wanted = Wanted(closing="replay", rehearsal_steps=3, missing_nodes="shrink", nodes=4)
    move = Move(wanted).fail("provision", "NodesMissing", nodes_up)
    assert move.saga.plan.source.nodes == 1
    assert (move.saga.closing, move.saga.tolerance) == (closing, tolerance)
    assert ("copied, not repeated" in move.saga.timeline[-1].detail) == (closing == "copy")


def test_a_fallback_of_another_kind_is_not_expected_to_give_equal_bits() -> None:
    other = sample_fallback("azure-sim")
    machine = msgspec.structs.replace(other.placement, instance_type="another")
    places = (msgspec.structs.replace(other, placement=machine), sample_fallback("ovh-sim"))
    wanted = Wanted(
        closing="replay", rehearsal_steps=3, missing_nodes="elsewhere", fallbacks=places
    )
    move = Move(wanted).fail("provision", "NodesMissing", 0)
    assert (move.saga.closing, move.saga.tolerance) == ("copy", LOSS_TOLERANCE)
    move.done("release").fail("provision", "NodesMissing", 0)
    assert (move.saga.closing, move.saga.tolerance) == ("replay", 0.0)


def test_a_plan_cannot_replay_without_a_rehearsal() -> None:
    with pytest.raises(UsageError, match="without a rehearsal"):
        start(sample_plan(wanted=Wanted(closing="replay")))


def test_while_steps_are_repeated_something_computes_so_that_still_is_less_than_the_pause() -> None:
    move = Move(REPLAY).done("provision", "precopy", "rehearse")
    move.tell(EffectDone("drain", 1_010.0, step=40, step_at=1_009.0))
    move.tell(EffectDone("catch_up", 1_013.0, step_at=1_012.0)).done("commit")
    move.tell(EffectDone("go", 1_015.0, step_at=1_014.5))
    assert (move.saga.pause_s, move.saga.still_s) == (5.5, 2.5)


def test_a_source_that_resumes_measures_the_pause_of_a_move_that_was_undone() -> None:
    move = Move().done("provision", "precopy")
    move.tell(EffectDone("drain", 1_010.0, step=40, step_at=1_009.0)).fail("copy", "Corrupt")
    move.done("cancel").tell(EffectDone("resume", 1_020.0, step_at=1_012.0))
    assert (move.saga.pause_s, move.saga.still_s) == (3.0, 3.0)


# -- a forced stop -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "way"),
    [
        ((), ["drain", "provision", "copy", "verify", "commit", "go", "retire"]),
        (("provision",), ["drain", "copy", "verify", "commit", "go", "retire"]),
        (("provision", "precopy"), ["drain", "copy", "verify", "commit", "go", "retire"]),
        (("provision", "precopy", "rehearse"), ["drain", "catch_up", "commit", "go", "retire"]),
        (("provision", "precopy", "rehearse", "drain"), ["catch_up", "commit", "go", "retire"]),
    ],
)
def test_a_forced_stop_seals_first_and_then_does_what_is_missing(
    before: tuple[EffectName, ...], way: list[str]
) -> None:
    move = Move(REPLAY).done(*before).tell(NOTICE)
    assert move.saga.rushed
    assert move.way() == way


def test_a_forced_stop_before_the_decision_still_waits_for_it() -> None:
    plan = sample_plan()
    saga, effects = step(start(plan), NOTICE)
    assert (saga.phase, saga.rushed, effects) == ("proposed", True, ())
    saga, effects = step(saga, Decided(sample_decision(plan), 1_030.0))
    assert [effect.name for effect in effects] == ["drain"]


def test_the_earlier_deadline_counts_and_is_shown() -> None:
    move = Move().tell(NOTICE).tell(Noticed("source", 1_025.0, 1_100.0))
    assert move.saga.notice == 1_050.0
    assert view(move.saga, run_name="gpt", as_of=1_040.0).notice_s == 10.0


def test_a_target_that_is_to_go_is_not_moved_to() -> None:
    move = Move().done("provision", "precopy", "drain", "copy")
    move.tell(Noticed("target", 1_020.0, 1_050.0))
    assert move.way() == ["cancel", "resume", "release"]
    assert move.saga.error is not None and "target's machine goes in 30 s" in move.saga.error


def test_a_target_that_is_to_go_while_the_handover_is_out_asks_the_log() -> None:
    move = Move().done("provision", "precopy", "drain", "copy", "verify")
    move.tell(Noticed("target", 1_020.0, 1_050.0)).fail("cancel", "Fenced")
    assert move.saga.phase == "committed"


def test_a_notice_after_the_commit_changes_nothing() -> None:
    move = Move().done("provision", "precopy", "drain", "copy", "verify", "commit")
    for side in ("source", "target"):
        assert step(move.saga, Noticed(side, 1_020.0, 1_050.0)) == (move.saga, ())  # type: ignore[arg-type]


def test_a_run_whose_source_went_is_not_given_up_with_its_first_target() -> None:
    move = Move().tell(NOTICE).done("drain").fail("provision", "NotFound")
    assert [effect.key for effect in pending(move.saga)] == ["mig-1:release"]
    move.done("release")
    assert [effect.key for effect in pending(move.saga)] == ["mig-1:provision@1"]
    for _ in range(3):
        move.done("provision").fail("copy", "Unavailable").done("release")
    move.done("provision").fail("copy", "Unavailable")
    assert move.saga.phase == "rolling_back"


def test_steps_that_a_forced_stop_lost_are_said() -> None:
    move = Move().tell(NOTICE)
    move.tell(EffectDone("drain", 1_060.0, step=30, lost_steps=4, detail="the machine went"))
    move.way()
    assert make_receipt(move.saga, at=2_000.0).lost_steps == 4


# -- missing nodes -------------------------------------------------------------------------


def nodes(policy: str, **more: object) -> Wanted:
    return Wanted(missing_nodes=policy, nodes=4, **more)  # type: ignore[arg-type]


def test_missing_nodes_roll_back_unless_the_plan_says_otherwise() -> None:
    move = Move(nodes("roll-back")).fail("provision", "NodesMissing", 3)
    assert move.saga.phase == "rolling_back"


def test_missing_nodes_are_waited_for_but_not_for_ever() -> None:
    move = Move(nodes("wait"))
    for _ in range(64):
        assert move.fail("provision", "NodesMissing", 3).saga.effect == "provision"
    assert move.saga.tries == 0
    assert move.fail("provision", "NodesMissing", 3).saga.phase == "rolling_back"


def test_a_node_that_is_lost_later_has_its_target_begun_again() -> None:
    move = Move(nodes("wait")).done("provision").fail("precopy", "NodesMissing", 3)
    assert move.way()[:3] == ["release", "provision", "precopy"]
    assert move.saga.tries == 1


def test_a_run_that_may_shrink_goes_on_with_the_nodes_that_came() -> None:
    move = Move(nodes("shrink", min_nodes=2)).fail("provision", "NodesMissing", 3)
    assert (move.saga.target.nodes, move.saga.effect) == (3, "release")
    assert move.way()[:3] == ["release", "provision", "precopy"]
    assert move.saga.partial == "3 of 4 nodes came up; the run goes on with 3"
    receipt = make_receipt(move.saga, at=2_000.0)
    assert receipt.partial == move.saga.partial
    assert receipt.target is not None and receipt.target.nodes == 3


@pytest.mark.parametrize("nodes_up", [0, 1, 4, None])
def test_a_run_shrinks_neither_below_its_least_nor_to_what_it_has(nodes_up: int | None) -> None:
    move = Move(nodes("shrink", min_nodes=2)).fail("provision", "NodesMissing", nodes_up)
    assert move.saga.phase == "rolling_back"


def test_a_move_goes_elsewhere_until_no_place_is_left() -> None:
    places = (sample_fallback("azure-sim"), sample_fallback("ovh-sim"))
    move = Move(nodes("elsewhere", fallbacks=places)).fail("provision", "NodesMissing", 0)
    assert (move.saga.target.cloud, move.saga.target_url) == ("azure-sim", "memory://azure-sim")
    move.done("release").fail("provision", "Exhausted")
    assert (move.saga.target.cloud, move.saga.tries) == ("ovh-sim", 1)
    move.done("release").fail("provision", "NodesMissing", 0)
    assert move.saga.phase == "rolling_back"


def test_a_target_that_cannot_be_released_does_not_hold_up_the_next_try() -> None:
    move = Move(nodes("shrink")).fail("provision", "NodesMissing", 3)
    for _ in range(8):
        assert move.saga.effect == "release"
        move.fail("release", "Unavailable")
    assert pending(move.saga)[0].key == "mig-1:provision@1"


def test_a_seal_outlives_the_target_that_was_given_up() -> None:
    move = Move(Wanted(closing="replay", rehearsal_steps=3, missing_nodes="wait", nodes=4))
    move.done("provision", "precopy", "rehearse", "drain").fail("catch_up", "NodesMissing", 3)
    assert move.way() == ["release", "provision", "copy", "verify", "commit", "go", "retire"]
    assert move.saga.sealed_step == 40


# -- a worse bill --------------------------------------------------------------------------


def test_a_worse_bill_asks_again_with_another_plan() -> None:
    move = Move(REHEARSED).done("provision", "precopy").measure("rehearse", 2_000_000)
    assert (move.saga.phase, pending(move.saga)) == ("asking", ())
    assert move.saga.plan.digest != move.plan.digest
    assert move.saga.plan.expires_at == move.at + 600.0
    assert move.saga.decision is None
    with pytest.raises(StaleDecision, match="not the one that was shown"):
        check_decision(move.saga, sample_decision(move.plan, by="bob", decision_id="x"), move.at)
    assert move.decide().way()[0] == "drain"
    assert [decision.plan_digest for decision in move.saga.earlier] == [move.plan.digest]


def test_the_answer_to_the_first_plan_sent_again_is_no_news_to_the_second() -> None:
    move = Move(REHEARSED)
    first = move.saga.decision
    assert first is not None
    move.done("provision", "precopy").measure("rehearse", 2_000_000)
    assert check_decision(move.saga, first, move.at) is False


@pytest.mark.parametrize(("total", "asks"), [(1_000_090, False), (1_000_091, True), (-9, False)])
def test_a_bill_that_is_hardly_worse_asks_nobody(total: int, asks: bool) -> None:
    move = Move(REHEARSED).done("provision", "precopy").measure("rehearse", total)
    assert (move.saga.phase == "asking") == asks
    assert move.saga.repriced == sample_bill(total)
    assert move.saga.step_s == 0.5


@pytest.mark.parametrize(
    ("approved", "asks"), [(-20_000_000, True), (-1_000_001, True), (-1_000_000, False)]
)
def test_a_saving_that_is_none_any_more_asks_again(approved: int, asks: bool) -> None:
    move = Move(REHEARSED)
    bill = sample_bill(approved)
    move.saga = start(with_digest(msgspec.structs.replace(move.plan, bill=bill, verdict="move")))
    move.decide().done("provision", "precopy").measure("rehearse", 0)
    assert (move.saga.phase == "asking") == asks
    assert move.saga.plan.verdict == ("stay" if asks else "move")


@pytest.mark.parametrize("answer", ["reject", "expire", "abort"])
def test_a_new_bill_that_nobody_wants_rolls_back(answer: str) -> None:
    move = Move(REHEARSED).done("provision", "precopy").measure("rehearse", 2_000_000)
    if answer == "reject":
        move.decide("reject", by="bob")
    elif answer == "expire":
        move.tell(Expired(move.at + 599.0))
        assert move.saga.phase == "asking"
        move.tell(Expired(move.at + 600.0))
    else:
        move.tell(Aborted(move.at))
    assert move.way() == ["cancel", "resume", "release"]


def test_a_forced_stop_skips_no_decision() -> None:
    move = Move(REHEARSED).done("provision", "precopy").measure("rehearse", 2_000_000).tell(NOTICE)
    assert (move.saga.phase, move.saga.effect) == ("asking", None)
    assert move.decide().way()[:3] == ["drain", "copy", "verify"]


def test_nobody_is_asked_after_the_seal() -> None:
    move = Move().done("provision", "precopy", "drain").measure("copy", 90_000_000)
    assert move.saga.effect == "verify"


# -- approvals and limits ------------------------------------------------------------------


def test_several_people_must_approve_each_another_one() -> None:
    move = Move(Wanted(approvals_needed=2))
    assert (move.saga.phase, len(move.saga.approvals)) == ("proposed", 1)
    with pytest.raises(StaleDecision, match="approved by ada already; 1 more"):
        check_decision(move.saga, sample_decision(move.plan, decision_id="again"), move.at)
    first = move.saga.approvals[0]
    assert check_decision(move.saga, first, move.at) is False
    move.decide(by="bob")
    assert move.saga.effect == "provision"
    assert move.saga.timeline[1].detail == "by ada and bob"
    move.way()
    assert [a.by for a in make_receipt(move.saga, at=2_000.0).approvals] == ["ada", "bob"]


def test_one_person_on_two_surfaces_is_one_person() -> None:
    move = Move(Wanted(approvals_needed=3)).decide(by="bob (notebook)")
    from_elsewhere = sample_decision(move.plan, decision_id="again", by="bob (terminal)")
    with pytest.raises(StaleDecision, match=r"approved by bob \(terminal\) already; 1 more"):
        check_decision(move.saga, from_elsewhere, move.at)


def test_one_reject_ends_it() -> None:
    move = Move(Wanted(approvals_needed=3)).decide("reject", by="bob")
    assert move.saga.phase == "rejected"


def test_an_approver_may_still_change_to_a_reject() -> None:
    move = Move(Wanted(approvals_needed=2)).decide("reject", by="ada")
    assert move.saga.phase == "rejected"


@pytest.mark.parametrize("done", range(6))
def test_too_much_spent_before_the_commit_is_known_rolls_back(done: int) -> None:
    names: tuple[EffectName, ...] = ("provision", "precopy", "drain", "copy", "verify")
    move = Move(Wanted(limit_micro_usd=50_000)).done(*names[:done])
    move.tell(Overspent(1_030.0, 60_000))
    assert move.way() == ["cancel", "resume", "release"]
    assert move.saga.error is not None and "$0.0600, its limit is $0.0500" in move.saga.error
    assert make_receipt(move.saga, at=2_000.0).overspent_micro_usd == 60_000


def test_too_much_spent_while_a_new_bill_is_asked_about_rolls_back() -> None:
    move = Move(REHEARSED).done("provision", "precopy").measure("rehearse", 2_000_000)
    assert move.tell(Overspent(1_030.0, 60_000)).saga.effect == "cancel"


def test_too_much_spent_after_the_commit_has_no_way_back() -> None:
    move = Move().done("provision", "precopy", "drain", "copy", "verify", "commit")
    assert step(move.saga, Overspent(1_030.0, 60_000)) == (move.saga, ())


def test_a_receipt_puts_the_forecast_beside_the_actual() -> None:
    closing = Closing(kind="copy", pause_s=4.0, still_s=3.0, num_bytes=500)
    plan = with_digest(msgspec.structs.replace(sample_plan(), closings=(closing,)))
    events: list[Event] = [Decided(sample_decision(plan), 1_001.0)]
    for name in ("provision", "precopy", "drain", "copy", "verify", "commit", "go", "retire"):
        at = 1_010.0 + 2.0 * len(events)
        num_bytes = 300 if name in ("precopy", "copy") else 0
        sealed = 40 if name == "drain" else None
        events.append(EffectDone(name, at, step=sealed, step_at=at, num_bytes=num_bytes))
    saga: Saga = fold(plan, events)
    receipt = make_receipt(saga, at=2_000.0, actual_micro_usd=120)
    found = {line.what: (line.forecast, line.actual) for line in compare(receipt)}
    assert found == {
        "pause": (4.0, 8.0), "still": (3.0, 8.0), "bytes": (500, 600), "cost": (90, 120),
    }  # fmt: skip
