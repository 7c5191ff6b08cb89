"""The saga, one transition at a time."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.core.errors import StaleDecision, UsageError
from cloudshift_lab.migration import (
    Aborted,
    Decided,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
    Saga,
    check_decision,
    fold,
    pending,
    start,
    step,
)
from cloudshift_lab.sim.plans import CREATED_AT, EXPIRES_AT, sample_decision, sample_plan

PLAN = sample_plan()
APPROVED = Decided(sample_decision(PLAN), at=1_001.0)
TO_COMMIT: tuple[EffectName, ...] = ("provision", "precopy", "drain", "copy", "verify")


def done(effect: EffectName, at: float = 1_010.0) -> EffectDone:
    if effect == "drain":
        return EffectDone(effect, at, step=40, manifest_digest="d" * 64, step_at=at)
    return EffectDone(effect, at, step_at=at + 2.5 if effect == "go" else None)


def failed(effect: EffectName, kind: str = "Unavailable") -> EffectFailed:
    return EffectFailed(effect, 1_011.0, kind, f"{effect} did not answer; wait")


def after(*events: Event) -> Saga:
    return fold(PLAN, events)


def effects_of(saga: Saga) -> list[str]:
    return [effect.name for effect in pending(saga)]


def up_to(effect: EffectName) -> list[Event]:
    """Everything before ``effect`` succeeded."""
    order: list[EffectName] = [*TO_COMMIT, "commit", "go", "retire"]
    return [APPROVED, *(done(name) for name in order[: order.index(effect)])]


def test_a_move_without_trouble_runs_every_effect_once_and_retires_the_source() -> None:
    saga, seen = start(PLAN), []
    saga, effects = step(saga, APPROVED)
    while effects:
        (effect,) = effects
        seen.append(effect.name)
        saga, effects = step(saga, done(effect.name))
    assert seen == [*TO_COMMIT, "commit", "go", "retire"]
    assert saga.phase == "source_retired"
    assert saga.is_final
    assert (saga.sealed_step, saga.manifest_digest) == (40, "d" * 64)
    assert saga.pause_s == 2.5


def test_the_timeline_names_every_phase_once() -> None:
    saga = after(*up_to("retire"), done("retire"))
    assert [entry.phase for entry in saga.timeline] == [
        "proposed", "approved", "provisioning", "precopying", "draining", "copying", "verifying",
        "committing", "committed", "resumed", "source_retired",
    ]  # fmt: skip
    assert saga.timeline[0].at == CREATED_AT
    assert saga.timeline[1].detail == "by ada"
    assert saga.timeline[5].detail == "sealed step 40"


def test_a_proposed_move_asks_for_nothing_until_it_is_decided() -> None:
    assert pending(start(PLAN)) == ()


def test_the_key_of_an_effect_is_the_same_at_every_try() -> None:
    saga = after(*up_to("go"))
    again, effects = step(saga, failed("go"))
    assert effects == pending(saga)
    assert effects[0].key == "mig-1:go"
    assert again.failures == 1


@pytest.mark.parametrize("effect", [*TO_COMMIT, "commit"])
def test_a_failure_before_the_commit_is_known_rolls_back_through_cancel(effect: EffectName) -> None:
    saga = after(*up_to(effect), failed(effect))
    assert saga.phase == "rolling_back"
    assert effects_of(saga) == ["cancel"]
    assert saga.error is not None and effect in saga.error


def test_rolling_back_cancels_then_resumes_the_source_then_releases_the_target() -> None:
    saga, seen = after(*up_to("copy"), failed("copy", "Corrupt")), []
    while not saga.is_final:
        (effect,) = pending(saga)
        seen.append(effect.name)
        saga, _ = step(saga, done(effect.name))
    assert seen == ["cancel", "resume", "release"]
    assert saga.phase == "rolled_back"
    assert saga.error_kind == "Corrupt"


def test_a_refused_cancel_means_the_handover_landed_and_the_move_goes_forward() -> None:
    saga = after(*up_to("commit"), failed("commit"), failed("cancel", "Fenced"))
    assert saga.phase == "committed"
    assert effects_of(saga) == ["commit"]  # once more, to finish the target's half of it
    assert saga.error is None
    saga, effects = step(saga, done("commit"))
    assert [effect.name for effect in effects] == ["go"]
    assert [entry.phase for entry in saga.timeline].count("committed") == 1


def test_a_cancel_without_an_answer_is_asked_again_for_ever() -> None:
    saga = after(*up_to("commit"), failed("commit"))
    for _ in range(500):
        saga, effects = step(saga, failed("cancel"))
        assert [effect.name for effect in effects] == ["cancel"]
    assert saga.failures == 500


def test_a_cancel_refused_before_any_handover_was_tried_is_not_a_commit() -> None:
    saga = after(*up_to("drain"), failed("drain"), failed("cancel", "Fenced"))
    assert saga.phase == "rolling_back"
    assert effects_of(saga) == ["resume"]


def test_late_word_of_the_handover_wins_while_cancel_is_still_open() -> None:
    saga = after(*up_to("commit"), failed("commit"), done("commit"))
    assert saga.phase == "committed"
    assert effects_of(saga) == ["go"]


def test_late_word_of_the_handover_is_ignored_once_cancel_has_won() -> None:
    events = [*up_to("commit"), failed("commit"), done("cancel")]
    assert after(*events, done("commit")) == after(*events)


@pytest.mark.parametrize("effect", ["go", "commit"])
def test_after_the_commit_failures_are_tried_again_and_never_rolled_back(
    effect: EffectName,
) -> None:
    events: list[Event] = up_to("go")
    if effect == "commit":
        events = [*up_to("commit"), failed("commit"), failed("cancel", "Fenced")]
    saga = after(*events)
    for kind in ("Unavailable", "Denied", "Corrupt", "Fenced") * 100:
        saga, effects = step(saga, failed(effect, kind))
        assert saga.phase == "committed"
        assert [pending_effect.name for pending_effect in effects] == [effect]
    assert saga.error is not None and saga.error.startswith(f"{effect}: ")


def test_a_source_that_cannot_be_retired_ends_the_move_with_an_error() -> None:
    saga = after(*up_to("retire"), *[failed("retire")] * 8)
    assert saga.phase == "source_retired"
    assert saga.error is not None and "retire" in saga.error


def test_a_source_that_is_gone_does_not_keep_the_rollback_open() -> None:
    saga = after(*up_to("drain"), failed("drain"), done("cancel"), failed("resume", "NotFound"))
    assert effects_of(saga) == ["release"]
    assert saga.error is not None and saga.error.startswith("drain did not answer; wait; then ")


def test_a_drain_that_names_no_step_is_a_failure() -> None:
    saga = after(*up_to("drain"), EffectDone("drain", 1_010.0))
    assert saga.phase == "rolling_back"


@pytest.mark.parametrize("effect", TO_COMMIT)
def test_calling_off_a_move_rolls_it_back_while_that_is_possible(effect: EffectName) -> None:
    saga = after(*up_to(effect), Aborted(1_012.0, "the run is being stopped"))
    assert effects_of(saga) == ["cancel"]
    assert saga.error == "the run is being stopped"


@pytest.mark.parametrize("effect", ["commit", "go", "retire"])
def test_calling_off_comes_too_late_once_the_commit_began(effect: EffectName) -> None:
    saga = after(*up_to(effect))
    assert step(saga, Aborted(1_012.0)) == (saga, ())


def test_calling_off_a_proposal_closes_it() -> None:
    saga = after(Aborted(1_002.0, "the run has ended"))
    assert (saga.phase, pending(saga)) == ("rejected", ())
    with pytest.raises(StaleDecision, match="called off"):
        check_decision(saga, sample_decision(PLAN), 1_003.0)


def test_repeated_and_foreign_outcomes_change_nothing() -> None:
    saga = after(*up_to("copy"))
    for event in (done("drain"), done("verify"), failed("provision"), APPROVED, Expired(9e9)):
        assert step(saga, event) == (saga, ())


def test_a_rejected_move_is_over() -> None:
    saga = after(Decided(sample_decision(PLAN, "reject"), at=1_001.0))
    assert (saga.phase, pending(saga)) == ("rejected", ())


def test_an_expired_move_is_over() -> None:
    assert after(Expired(EXPIRES_AT)).phase == "expired"
    assert after(Expired(EXPIRES_AT - 0.1)).phase == "proposed"


def test_the_same_decision_again_is_no_news_even_after_the_expiry() -> None:
    decision = sample_decision(PLAN)
    assert check_decision(start(PLAN), decision, 1_001.0) is True
    assert check_decision(after(APPROVED), decision, EXPIRES_AT + 1) is False


@pytest.mark.parametrize(
    ("saga", "decision", "now", "reason"),
    [
        (start(PLAN), sample_decision(sample_plan("mig-2")), 1_001.0, "digest"),
        (start(PLAN), sample_decision(PLAN), EXPIRES_AT, "expired"),
        (after(Expired(EXPIRES_AT)), sample_decision(PLAN), 1_001.0, "expired"),
        (after(APPROVED), sample_decision(PLAN, decision_id="dec-2"), 1_002.0, "decided"),
        (after(APPROVED), sample_decision(PLAN, "reject"), 1_002.0, "decided"),
    ],
)
def test_a_stale_decision_is_refused_with_its_reason(
    saga: Saga, decision: msgspec.Struct, now: float, reason: str
) -> None:
    with pytest.raises(StaleDecision) as caught:
        check_decision(saga, decision, now)  # type: ignore[arg-type]
    assert caught.value.facts["reason"] == reason


def test_a_refused_decision_does_not_pass_when_it_was_journalled_all_the_same() -> None:
    late = Decided(sample_decision(PLAN), at=EXPIRES_AT)
    assert step(start(PLAN), late) == (start(PLAN), ())


def test_the_winner_of_a_decision_is_named() -> None:
    with pytest.raises(StaleDecision, match="approve by ada"):
        check_decision(after(APPROVED), sample_decision(PLAN, "reject"), 1_002.0)


def test_a_plan_that_was_altered_cannot_be_started() -> None:
    with pytest.raises(UsageError, match="does not fit its digest"):
        start(msgspec.structs.replace(PLAN, target_url="memory://elsewhere"))
