"""A machine that is about to go: the newest state first, and what cannot be saved is said."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.protocols import RanksView, SaveFailed
from cloudshift_lab.core.orders import OrderKind
from cloudshift_lab.migration.grace import OUTLIVED_S

from .conftest import Attempt, ManualWorld, SwitchableStore, hand_over
from .repeating import Standby, seal_at, train
from .test_rehearsal import caught_up, shadowing

CALLED_OFF: tuple[OrderKind, ...] = ("precopy", "rehearse", "catch_up", "copy", "verify")


@pytest.fixture
def standby(world: ManualWorld, source: Attempt) -> Standby:
    source.tick()
    train(source, 10, staged=10)
    train(source, 12, staged=10)
    made = Standby(world, source, SwitchableStore("memory://target"))
    made.tick()
    return made


def words(attempt: Attempt) -> str:
    return "; ".join(attempt.published.warnings)


def test_a_notice_drains_at_once_and_is_done_with_the_commit(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    notice = source.order("notice", within_s=120.0)
    status = source.tick()
    assert source.ranks.told[-1] == "drain"
    assert status.notice_until is not None
    assert status.notice_until - status.at == pytest.approx(120.0, abs=2.0)
    assert source.result(notice).state == "running"
    source.drain_to(13)
    status = source.tick()
    result = source.result(notice)
    assert (result.state, result.step, status.state) == ("done", 13, "drained")
    assert result.manifest_digest == str(source.log.sync().commits[-1].manifest_digest)


def test_a_notice_that_leaves_time_says_that_nothing_is_lost(source: Attempt) -> None:
    source.tick()
    train(source, 10, staged=10)
    source.order("notice", within_s=120.0)
    source.tick()
    assert "this machine goes in 120 s" in words(source)
    assert "enough to save the newest step" in words(source)


def test_what_this_agent_has_not_measured_is_said_to_be_assumed(source: Attempt) -> None:
    source.tick()
    source.order("notice", within_s=120.0)
    source.tick()
    assert "a step's time is unknown, 1 s assumed" in words(source)
    assert "a save's time is unknown, 10 s assumed" in words(source)


def test_a_notice_that_is_too_short_says_beforehand_how_many_steps_are_lost(
    source: Attempt,
) -> None:
    source.tick()
    train(source, 10, staged=10)
    train(source, 14, staged=10)
    source.order("notice", within_s=0.5)
    source.tick(1)
    assert "5 steps will be lost" in words(source)


def test_a_save_under_way_is_finished_first_when_the_newest_step_would_be_too_late(
    source: Attempt,
) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(10, staged=10)
    source.tick()
    assert source.saver.started == [10]
    notice = source.order("notice", within_s=0.5)
    source.tick()
    source.drain_to(12)
    source.tick()
    assert source.saver.abandoned == 0
    source.saver.is_slow = False
    source.tick(6)
    assert [c.step for c in source.log.sync().commits] == [10, 12]
    assert source.result(notice).step == 12


def test_a_save_under_way_gives_way_when_there_is_time_for_the_newest_step(
    source: Attempt,
) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(10, staged=10)
    source.tick()
    source.order("notice", within_s=300.0)
    source.tick()
    source.drain_to(12)
    source.tick(12)
    assert source.saver.abandoned == 1
    assert [c.step for c in source.log.sync().commits] == [12]


def test_a_notice_while_a_drain_is_under_way_ends_with_the_same_step(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    drain = source.order("drain")
    source.tick()
    notice = source.order("notice", within_s=60.0)
    source.tick()
    source.drain_to(12)
    source.tick()
    assert (source.result(drain).step, source.result(notice).step) == (12, 12)


def test_a_drain_after_a_notice_is_done_at_once(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    source.order("notice", within_s=60.0)
    source.tick()
    source.drain_to(12)
    source.tick()
    drain = source.order("drain")
    source.tick()
    assert source.result(drain).state == "done"


def test_a_resume_overtakes_a_notice_as_it_does_a_drain(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    notice = source.order("notice", within_s=60.0)
    source.tick()
    source.order("resume")
    source.tick()
    source.drain_to(12)
    source.tick()
    assert source.result(notice).error_kind == "Conflict"
    assert source.ranks.told[-1] == "start from 12"


def test_a_notice_whose_step_cannot_be_saved_says_so(source: Attempt) -> None:
    source.tick()
    notice = source.order("notice", within_s=60.0)
    source.tick()
    source.saver.failures = [SaveFailed(12, "Exhausted", "the disk is full; free space")] * 50
    source.drain_to(12)
    source.tick(800)
    assert "the disk is full" in (source.result(notice).error or "")


def test_a_second_notice_does_not_put_off_the_first_ones_end(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    source.order("notice", within_s=30.0)
    until = source.tick().notice_until
    source.order("notice", within_s=20.0)
    sooner = source.tick().notice_until
    assert until is not None and sooner is not None and sooner < until
    source.order("notice", within_s=500.0)
    assert source.tick().notice_until == sooner


def test_a_notice_without_a_time_is_refused(source: Attempt) -> None:
    source.tick()
    notice = source.order("notice")
    source.tick()
    assert source.result(notice).error_kind == "UsageError"


def test_a_run_that_finishes_before_the_machine_goes_is_finished(source: Attempt) -> None:
    source.tick()
    source.order("notice", within_s=60.0)
    source.tick()
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    status = source.tick()
    assert (status.state, status.committed_step) == ("finished", 20)


# -- at a standby ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CALLED_OFF)
def test_a_notice_at_a_standby_calls_off_what_it_does(
    source: Attempt, standby: Standby, kind: OrderKind
) -> None:
    source.store.is_down = True
    order = standby.order(kind, step=10, digest="0" * 64, num_steps=2)
    standby.tick()
    assert standby.result(order).state == "running"
    notice = standby.order("notice", within_s=30.0)
    status = standby.tick()
    assert standby.result(order).error_kind == "Conflict"
    assert standby.result(notice).state == "done"
    assert (status.state, standby.log.sync().records) == ("standby", ())
    assert status.notice_until is not None


def test_a_notice_while_ranks_rehearse_ends_the_order(source: Attempt, standby: Standby) -> None:
    standby.order("precopy", num_steps=9)
    rehearse = standby.order("rehearse", num_steps=9)
    standby.tick(8)
    assert standby.result(rehearse).state == "running"
    standby.order("notice", within_s=30.0)
    standby.tick()
    assert standby.result(rehearse).error_kind == "Conflict"
    assert standby.saver.started == []


def test_a_notice_while_catching_up_ends_the_order(source: Attempt, standby: Standby) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    standby.ranks.is_stuck = True
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick()
    standby.order("notice", within_s=30.0)
    standby.tick()
    assert standby.result(catch_up).error_kind == "Conflict"


def test_a_notice_before_the_run_arrives_waits_for_it_and_then_drains(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    go = standby.order("go", step=20, digest=digest)
    standby.tick()
    notice = standby.order("notice", within_s=60.0)
    standby.tick()
    assert standby.result(notice).state == "running"
    assert "drain" not in standby.ranks.told
    hand_over(source, standby, digest, carries_over=False)
    standby.tick()
    assert "limit None" in standby.ranks.told and "drain" in standby.ranks.told
    standby.ranks.is_stuck = True
    standby.ranks.view = RanksView(
        state="drained", step=22, first_step_at=1.0, staged_step=22, staged_last=True
    )
    standby.tick(8)
    assert standby.result(go).state == "done"
    assert (standby.result(notice).state, standby.result(notice).step) == ("done", 22)


@pytest.mark.parametrize("kind", ["save", "drain"])
def test_a_notice_at_the_source_during_another_order_lets_both_be_done(
    source: Attempt, kind: OrderKind
) -> None:
    source.tick()
    source.run_to(12)
    order = source.order(kind)
    source.tick()
    notice = source.order("notice", within_s=60.0)
    source.tick()
    source.drain_to(13)
    source.tick(6)
    assert source.result(order).state == "done"
    assert source.result(notice).state == "done"


def test_a_notice_while_the_source_pushes_stops_that(source: Attempt) -> None:
    source.tick()
    train(source, 10, staged=10)
    source.store.lost_part = "/manifest"
    push = source.order("precopy", replay=True, to_cloud="b", to_url="memory://b")
    source.tick()
    notice = source.order("notice", within_s=60.0)
    source.tick()
    assert source.result(push).state == "failed"
    assert source.result(notice).state == "running"


def noticed_and_drained(source: Attempt, *, within_s: float = 60.0) -> str:
    source.tick()
    source.run_to(12)
    notice = source.order("notice", within_s=within_s)
    source.tick()
    source.drain_to(12)
    source.tick()
    return notice


def test_a_run_trains_on_when_its_machine_was_spared(source: Attempt) -> None:
    noticed_and_drained(source)
    source.world.time += 60.0 + OUTLIVED_S
    status = source.tick()
    assert source.ranks.told[-1] == "start from 12"
    assert (status.state, status.notice_until) == ("running", None)
    assert "is still here" in words(source)


def test_before_its_time_is_well_over_the_machine_may_still_go(source: Attempt) -> None:
    noticed_and_drained(source)
    source.world.time += 60.0 + OUTLIVED_S / 2
    assert source.tick().state == "drained"


@pytest.mark.parametrize("is_asked_first", [True, False])
def test_a_spared_machine_does_not_undo_a_drain_that_a_move_asked_for(
    source: Attempt, is_asked_first: bool
) -> None:
    source.tick()
    source.run_to(12)
    kinds: tuple[OrderKind, ...] = ("drain", "notice") if is_asked_first else ("notice", "drain")
    for kind in kinds:
        source.order(kind, within_s=60.0 if kind == "notice" else None)
        source.tick()
    source.drain_to(12)
    source.tick()
    source.world.time += 60.0 + OUTLIVED_S
    status = source.tick()
    assert (status.state, status.notice_until) == ("drained", None)


def test_a_move_that_drains_a_spared_machine_calls_its_resume_off(source: Attempt) -> None:
    noticed_and_drained(source)
    source.world.time += 60.0 + OUTLIVED_S
    source.ranks.is_slow_to_start = True
    source.tick()
    assert source.ranks.told[-1] == "start from 12"
    drain = source.order("drain")
    source.tick()
    assert source.result(drain).state == "running", "the ranks train again, and must stop again"
    source.drain_to(14)
    source.tick()
    assert source.result(drain).step == 14


def test_an_agent_that_is_started_on_another_machine_does_not_heed_the_old_ones_notice(
    world: ManualWorld, source: Attempt
) -> None:
    notice = source.order("notice", within_s=60.0, at=world.time - 61.0)
    source.tick()
    source.run_to(12)
    status = source.tick()
    assert source.result(notice).state == "done"
    assert "drain" not in source.ranks.told
    assert status.notice_until is None


def test_an_agent_that_is_started_again_in_time_knows_how_much_is_left(
    world: ManualWorld, source: Attempt
) -> None:
    source.order("notice", within_s=60.0, at=world.time - 45.0)
    source.tick(1)
    source.run_to(12)
    source.tick(1)
    until = source.published.notice_until
    assert until is not None and until == pytest.approx(1015.0, abs=1.0)
