"""From staged to committed: the last state does not wait for an earlier one."""

from __future__ import annotations

from dataclasses import replace

from cloudshift_lab.agent.protocols import RanksView, SaveFailed

from .conftest import Attempt, ManualWorld, SwitchableStore, make_job


def test_an_earlier_state_gives_way_to_the_last_one_and_is_no_fault(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(10, staged=10)
    source.tick()
    assert source.saver.started == [10]
    drain = source.order("drain")
    source.drain_to(14)
    source.tick(12)
    assert (source.saver.abandoned, source.saver.started) == (1, [10, 14])
    assert source.result(drain).step == 14
    assert [c.step for c in source.log.sync().commits] == [14]
    assert source.published.warnings == ()


def test_the_last_state_itself_never_gives_way(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.drain_to(14)
    source.tick(20)
    assert (source.saver.abandoned, source.saver.started) == (0, [14])


def test_without_a_drain_a_newer_state_waits_its_turn(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(10, staged=10)
    source.tick()
    source.ranks.view = RanksView(state="running", step=20, staged_step=20)
    source.tick(8)
    assert source.saver.abandoned == 0
    source.saver.is_slow = False
    source.tick(8)
    assert [c.step for c in source.log.sync().commits] == [10, 20]


FULL = "one leaf is a lambda; mend it"


def refuse(source: Attempt, step: int, times: int) -> None:
    source.saver.failures = [SaveFailed(step, "UsageError", FULL) for _ in range(times)]


def test_a_step_that_cannot_be_saved_makes_room_for_the_next_one_while_training_runs(
    source: Attempt,
) -> None:
    source.tick()
    refuse(source, 10, 50)
    source.run_to(12, staged=10)
    source.tick(2000)
    assert source.ranks.released == [10]
    assert len(source.saver.started) == 8
    assert any("step 10" in line and FULL in line for line in source.published.warnings)
    source.saver.failures = []
    source.run_to(20, staged=20)
    status = source.tick(200)
    assert (status.committed_step, source.ranks.released) == (20, [10, 20])


def test_after_a_step_was_given_up_each_newer_one_is_tried_once_until_one_gets_through(
    source: Attempt,
) -> None:
    source.tick()
    refuse(source, 10, 8)
    source.run_to(12, staged=10)
    source.tick(2000)
    for step in (20, 30):
        refuse(source, step, 1)
        source.run_to(step, staged=step)
        source.tick(200)
    assert source.ranks.released == [10, 20, 30]
    assert source.saver.started[8:] == [20, 30]
    source.run_to(40, staged=40)
    assert source.tick(200).committed_step == 40
    refuse(source, 50, 7)
    source.run_to(50, staged=50)
    assert source.tick(2000).committed_step == 50


def test_a_step_that_was_given_up_lets_the_clock_ask_for_the_next(world: ManualWorld) -> None:
    attempt = Attempt(world, SwitchableStore("memory://source"), make_job(save_policy="30s"))
    attempt.tick()
    refuse(attempt, 10, 50)
    attempt.run_to(12, staged=10)
    attempt.ranks.view = replace(attempt.ranks.view, num_steps=12, steps_s=12.0)
    attempt.tick(300)
    assert "capture" not in attempt.ranks.told
    attempt.tick(700)
    assert "capture" in attempt.ranks.told


def test_a_log_that_refuses_a_commit_does_not_keep_later_steps_out(source: Attempt) -> None:
    source.tick()
    source.store.full_part = "/log/"
    source.run_to(12, staged=10)
    source.tick(2000)
    assert source.ranks.released == [10]
    source.store.full_part = ""
    source.run_to(20, staged=20)
    assert source.tick(200).committed_step == 20
    assert [c.step for c in source.log.sync().commits] == [20]


def test_a_store_that_is_away_makes_no_step_be_given_up(source: Attempt) -> None:
    source.tick()
    source.saver.failures = [SaveFailed(10, "Unavailable", "the bucket is away; wait")] * 40
    source.run_to(12, staged=10)
    source.tick(10_000)
    assert source.published.committed_step == 10
    assert source.ranks.released == [10]


def test_ranks_that_end_with_a_step_that_was_given_up_have_failed(source: Attempt) -> None:
    source.tick()
    refuse(source, 10, 50)
    source.run_to(10, staged=10)
    source.tick(2000)
    source.ranks.view = RanksView(state="finished", step=10, staged_step=10)
    status = source.tick(200)
    assert status.state == "failed"
    assert FULL in (status.error or "")


def test_a_newer_owner_ends_a_drain_whose_step_can_never_be_saved(source: Attempt) -> None:
    """Its chunks are gone: the newer owner has forgotten what this one builds on."""
    source.tick()
    source.log.acquire(generation=7, owner="somebody", nonce="n")
    source.saver.failures = [SaveFailed(14, "NotFound", "the step before it is gone")] * 100
    source.order("drain")
    source.drain_to(14)
    status = source.tick(8)
    assert status.state == "fenced"
    assert "generation 7" in (status.error or "")


def test_a_save_that_was_asked_to_stand_alone_does_and_the_next_ones_do_not(
    source: Attempt,
) -> None:
    source.tick()
    source.run_to(12)
    order = source.order("save", standalone=True)
    source.tick()
    source.run_to(13, staged=13)
    source.tick()
    assert source.result(order).state == "done"
    source.run_to(20, staged=20)
    source.tick()
    assert (source.saver.started, source.saver.standalone) == ([13, 20], [13])
