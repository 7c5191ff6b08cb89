"""A run that has arrived and is not saved here yet: whatever ends then, the run does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloudshift_lab.agent.attempt import LAST_WORDS_S
from cloudshift_lab.agent.protocols import RankError, RanksView, SaveFailed

from .conftest import Attempt, ManualWorld, SwitchableStore, hand_over
from .repeating import Standby, loss_of, seal_at, train
from .test_rehearsal import caught_up, close_by_copy, rehearsed, shadowing

FAILED = RanksView(state="failed", error=RankError(1, "out of memory", ""))


@pytest.fixture
def standby(world: ManualWorld, source: Attempt) -> Standby:
    source.tick()
    train(source, 10, staged=10)
    train(source, 12, staged=10)
    made = Standby(world, source, SwitchableStore("memory://target"))
    made.tick()
    return made


@pytest.fixture
def digest(source: Attempt, standby: Standby) -> str:
    """Step 20 was replayed and the run handed over; the target has not heard ``go`` yet."""
    found = caught_up(standby, source)
    hand_over(source, standby, found, carries_over=False)
    return found


def kinds(attempt: Attempt) -> list[str]:
    return [record.kind for record in attempt.log.sync().records]


def stranded(standby: Standby, digest: str) -> str:
    """It trains, its first save never ends, and a rank has failed."""
    standby.saver.is_slow = True
    go = standby.order("go", step=20, digest=digest)
    standby.tick(3)
    assert standby.log.sync().commits == ()
    standby.ranks.view = replace(standby.ranks.poll(), state="failed", error=FAILED.error)
    return go


# -- before go -------------------------------------------------------------------------------------


def test_ranks_that_fail_before_go_wait_at_the_gate_again_and_go_on_from_the_sources_step(
    standby: Standby, digest: str
) -> None:
    standby.ranks.view = FAILED
    status = standby.tick()
    assert status.state == "standby"
    assert any("out of memory" in line for line in status.warnings)
    go = standby.order("go", step=20, digest=digest)
    status = standby.tick(12)
    assert standby.result(go).state == "done"
    assert "go 20" in standby.ranks.told
    assert (status.state, status.committed_step) == ("running", 20)


def test_ranks_that_fail_again_and_again_before_go_are_not_started_all_the_time(
    standby: Standby, digest: str
) -> None:
    told = len(standby.ranks.told)
    for _ in range(80):
        standby.ranks.view = FAILED
        standby.tick(1)
    assert 2 <= len(standby.ranks.told[told:]) <= 5
    assert set(standby.ranks.told[told:]) == {"start standby"}
    assert standby.published.state in ("standby", "starting")


def test_a_store_that_is_away_while_ranks_fail_before_go_does_not_end_the_run(
    standby: Standby, digest: str
) -> None:
    standby.ranks.view = FAILED
    standby.store.lost_part = "/log/"
    standby.tick()
    assert "kill" not in standby.ranks.told
    standby.store.lost_part = ""
    go = standby.order("go", step=20, digest=digest)
    standby.tick(12)
    assert standby.result(go).state == "done"


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_stop_before_go_leaves_a_log_from_which_the_run_can_be_resumed(
    standby: Standby, digest: str, has_failed: bool
) -> None:
    if has_failed:
        standby.ranks.view = FAILED
    standby.agent.stop()
    status = standby.tick(20)
    assert (status.state, status.committed_step) == ("stopped", 20)
    assert kinds(standby) == ["acquire", "commit", "release"]
    assert standby.log.sync().commits[0].manifest_digest == digest


def test_a_stop_before_go_waits_for_a_source_that_is_away(
    source: Attempt, standby: Standby, digest: str
) -> None:
    source.store.is_down = True
    standby.agent.stop()
    standby.tick(20)
    assert kinds(standby) == ["acquire"]
    source.store.is_down = False
    assert standby.tick(40).state == "stopped"
    assert kinds(standby) == ["acquire", "commit", "release"]


def test_a_stop_after_a_copied_close_needs_nothing_of_the_source(
    source: Attempt, standby: Standby
) -> None:
    found = caught_up(standby, source)
    hand_over(source, standby, found)
    source.store.is_down = True
    standby.agent.stop()
    assert standby.tick().state == "stopped"


# -- stranded --------------------------------------------------------------------------------------


def test_a_first_save_that_never_ends_after_a_failure_gives_way_to_the_sources_step(
    standby: Standby, digest: str
) -> None:
    go = stranded(standby, digest)
    standby.tick(int(LAST_WORDS_S))
    assert kinds(standby) == ["acquire"]
    standby.tick(4 * int(LAST_WORDS_S))
    assert standby.saver.abandoned == 1
    assert standby.ranks.told[-2:] == ["start standby", "go 20"]
    assert (standby.published.state, standby.published.committed_step) == ("running", 20)
    assert standby.result(go).state == "done"


def test_a_first_save_that_ends_soon_after_a_failure_is_committed_and_the_run_failed(
    standby: Standby, digest: str
) -> None:
    stranded(standby, digest)
    standby.ranks.is_stuck = True
    standby.tick()
    standby.saver.is_slow = False
    assert standby.tick(5).state == "failed"
    assert kinds(standby) == ["acquire", "commit", "release"]


def test_a_first_save_that_is_refused_after_a_failure_gives_way_to_the_sources_step(
    standby: Standby, digest: str
) -> None:
    standby.saver.failures = [SaveFailed(20, "Exhausted", "the disk is full; free space")] * 50
    stranded(standby, digest)
    standby.saver.is_slow = False
    standby.tick(400)
    assert (standby.published.state, standby.published.committed_step) == ("running", 20)


def test_ranks_that_left_nothing_behind_give_way_to_the_sources_step_at_once(
    standby: Standby, digest: str
) -> None:
    stranded(standby, digest)
    standby.ranks.view = FAILED
    standby.tick(12)
    assert (standby.published.state, standby.published.committed_step) == ("running", 20)


def test_what_a_given_up_save_brings_late_is_not_committed(standby: Standby, digest: str) -> None:
    stranded(standby, digest)
    standby.ranks.view = FAILED
    standby.saver.abandon = lambda: setattr(standby.saver, "is_slow", False)  # too late for it
    standby.tick(20)
    assert standby.saver.started == [20]
    assert kinds(standby) == ["acquire", "commit"], "the carried step, not the late one too"


def test_a_stop_whose_first_save_is_refused_leaves_the_sources_step(
    standby: Standby, digest: str
) -> None:
    standby.saver.failures = [SaveFailed(22, "Exhausted", "the disk is full; free space")] * 50
    standby.order("go", step=20, digest=digest)
    standby.tick(2)
    standby.order("stop")
    standby.tick(2)
    standby.ranks.is_stuck = True
    standby.ranks.view = RanksView(state="drained", step=22, staged_step=22, staged_last=True)
    status = standby.tick(800)
    assert (status.state, status.committed_step) == ("stopped", 20)
    assert kinds(standby) == ["acquire", "commit", "release"]


# -- a notice, and a source that is away -----------------------------------------------------------


def test_a_notice_between_the_commit_and_go_drains_once_the_run_is_here(
    standby: Standby, digest: str
) -> None:
    notice = standby.order("notice", within_s=60.0)
    standby.tick()
    assert standby.result(notice).state == "running"
    standby.order("go", step=20, digest=digest)
    standby.tick()
    assert "drain" in standby.ranks.told


def test_a_notice_that_was_answered_before_the_commit_drains_once_the_run_is_here(
    source: Attempt, standby: Standby
) -> None:
    found = caught_up(standby, source)
    notice = standby.order("notice", within_s=600.0)
    standby.tick()
    assert standby.result(notice).state == "done"
    hand_over(source, standby, found, carries_over=False)
    standby.order("go", step=20, digest=found)
    standby.tick(6)
    assert standby.ranks.told[-1] == "drain"


def test_a_source_is_not_looked_at_any_more_once_nothing_is_rehearsed(
    source: Attempt, standby: Standby
) -> None:
    order = rehearsed(standby, num_steps=2)
    train(source, 14, staged=10)
    standby.tick(20)
    assert standby.result(order).state == "done"
    close_by_copy(source, standby, seal_at(source, 20))
    source.store.reads.clear()
    standby.tick(20)
    assert source.store.reads == []


@pytest.mark.parametrize("kind", ["copy", "go"])
def test_a_precopied_step_that_is_closed_by_copying_ends_the_looking(
    source: Attempt, standby: Standby, kind: str
) -> None:
    standby.order("precopy", num_steps=2)
    standby.tick(8)
    digest = seal_at(source, 20)
    standby.order(kind, step=20, digest=digest)  # type: ignore[arg-type]
    standby.tick(8)
    source.store.reads.clear()
    standby.tick(20)
    assert source.store.reads == []


def test_a_source_that_is_away_is_looked_at_less_and_less_often(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    source.store.is_down = True
    source.store.reads.clear()
    standby.tick(240)  # a minute
    assert 3 <= len(source.store.reads) <= 8
    source.store.is_down = False
    standby.tick(80)
    train(source, 16, staged=10)
    standby.tick(20)
    assert standby.ranks.view.held_step == 16


# -- losses that are told now and then -------------------------------------------------------------


def test_a_rehearsal_of_few_losses_goes_on_until_one_was_compared(
    world: ManualWorld, source: Attempt
) -> None:
    source.tick()
    train(source, 10, staged=10, silent=True)
    source.ranks.view = replace(source.ranks.view, losses=((10, loss_of(10)),))
    source.tick(10)
    standby = Standby(world, source, SwitchableStore("memory://target"))
    standby.ranks.is_silent = True
    standby.tick()
    order = rehearsed(standby, num_steps=3)
    train(source, 16, silent=True)
    standby.tick(30)
    assert standby.ranks.view.held_step == 16
    assert standby.result(order).state == "running", "the next loss is not told yet"
    train(source, 20, silent=True)
    source.ranks.view = replace(source.ranks.view, losses=((20, loss_of(20)),))
    source.tick(10)
    standby.tick(30)
    standby.ranks.view = replace(standby.ranks.view, losses=((20, loss_of(20)),))
    standby.tick(8)
    assert standby.result(order).state == "done"
    assert "1 losses equal" in standby.result(order).detail
