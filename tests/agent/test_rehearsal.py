"""A standby repeats the source's steps before the commit, proves them, and goes on from there."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.protocols import RankError, RanksView, SaveFailed
from cloudshift_lab.agent.rehearsal import STUCK_S, apart_by
from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.storage.logstate import log_key

from .conftest import Attempt, ManualWorld, SwitchableStore, hand_over, save_step
from .repeating import STEP_S, Standby, loss_of, seal_at, train


@pytest.fixture
def standby(world: ManualWorld, source: Attempt) -> Standby:
    """At the gate; its source has committed step 10 and done step 12."""
    source.tick()
    train(source, 10, staged=10)
    train(source, 12, staged=10)
    made = Standby(world, source, SwitchableStore("memory://target"))
    made.tick()
    return made


def rehearsed(standby: Standby, *, num_steps: int = 3, **more: object) -> str:
    """Pre-copied and asked to rehearse."""
    standby.order("precopy", num_steps=num_steps)
    standby.tick()
    order = standby.order("rehearse", num_steps=num_steps, **more)
    standby.tick()
    return order


def shadowing(standby: Standby, source: Attempt) -> None:
    """The rehearsal is done and the ranks follow the source."""
    order = rehearsed(standby, num_steps=2, replay=True)
    train(source, 14, staged=10)
    standby.tick(20)
    assert standby.result(order).state == "done", standby.result(order)


def caught_up(standby: Standby, source: Attempt, step: int = 20) -> str:
    """Sealed at ``step`` and proved; the digest."""
    shadowing(standby, source)
    digest = seal_at(source, step)
    order = standby.order("catch_up", step=step, digest=digest)
    standby.tick(30)
    result = standby.result(order)
    assert (result.state, result.step, result.manifest_digest) == ("done", step, digest), result
    return digest


# -- rehearse --------------------------------------------------------------------------------------


def test_a_rehearsal_compares_losses_and_brings_the_ranks_back_to_the_gate(
    source: Attempt, standby: Standby
) -> None:
    order = rehearsed(standby)
    assert standby.result(order).state == "running"
    assert standby.ranks.told == ["start standby", "go 10 up to 12"]
    train(source, 14, staged=10)
    standby.tick(20)
    result = standby.result(order)
    assert (result.state, result.step_s) == ("done", STEP_S)
    assert "bit by bit" in result.detail
    assert standby.ranks.told[-2:] == ["limit 14", "start standby"]
    assert standby.ranks.view.state == "gate"


def test_what_is_rehearsed_is_never_saved_nor_shown_as_the_runs(
    source: Attempt, standby: Standby
) -> None:
    rehearsed(standby, replay=True)
    standby.ranks.view = RanksView(state="held", step=12, staged_step=12, loss=0.5)
    status = standby.tick(20)
    assert (status.state, status.step, status.loss) == ("standby", None, None)
    assert (status.first_step_at, status.last_step_at) == (None, None)
    assert standby.saver.started == []
    assert standby.log.sync().records == ()


def test_the_losses_of_a_rehearsal_are_in_the_status(source: Attempt, standby: Standby) -> None:
    rehearsed(standby, replay=True)
    assert standby.tick(10).losses == ((11, loss_of(11)), (12, loss_of(12)))


def test_ranks_that_rehearse_never_overtake_what_the_source_has_said(
    source: Attempt, standby: Standby
) -> None:
    rehearsed(standby, replay=True)
    for step in (12, 15, 16, 19):
        train(source, step, staged=10)
        standby.tick(20)
        assert standby.ranks.view.held_step == step


def test_another_loss_fails_the_rehearsal_and_names_the_step_and_both(
    source: Attempt, standby: Standby
) -> None:
    standby.ranks.wrong_from = 12
    order = rehearsed(standby)
    standby.tick(20)
    result = standby.result(order)
    assert (result.state, result.error_kind) == ("failed", "Mismatch")
    for part in ("step 12", repr(loss_of(12)), repr(loss_of(12) + 1e-3)):
        assert part in (result.error or "")
    assert standby.ranks.told[-1] == "start standby"
    assert standby.published.state == "standby"


def test_a_loss_within_the_tolerance_is_equal_enough(source: Attempt, standby: Standby) -> None:
    standby.ranks.wrong_from = 11
    order = rehearsed(standby, num_steps=2, tolerance=0.05)
    standby.tick(20)
    assert standby.result(order).state == "done"
    assert "within 0.05" in standby.result(order).detail


def test_how_far_losses_are_apart_is_relative_to_the_larger() -> None:
    nan, inf = float("nan"), float("inf")
    assert apart_by(nan, nan) == apart_by(inf, inf) == apart_by(0.5, 0.5) == 0.0
    assert 0.0 < apart_by(0.5, 0.5 + 2**-53 * 2) < 1e-15
    assert apart_by(nan, 0.5) == apart_by(inf, -inf) == inf
    assert apart_by(1.0, 2.0) == apart_by(-2.0, -1.0) == 0.5


def test_losses_that_are_near_are_said_to_be_and_end_the_repeating(
    source: Attempt, standby: Standby
) -> None:
    standby.ranks.wrong_from = 12
    order = rehearsed(standby, num_steps=2, tolerance=0.05, replay=True)
    standby.tick(20)
    result = standby.result(order)
    assert (result.state, result.apart_step) == ("done", 12)
    assert result.apart == pytest.approx(apart_by(loss_of(12), loss_of(12) + 1e-3))
    assert f"largest relative difference {result.apart:.2g} at step 12 (within 0.05)" in (
        result.detail
    )
    assert standby.ranks.told[-1] == "start standby"
    assert standby.ranks.view.state == "gate"


def test_losses_that_drift_apart_while_the_source_trains_on_are_not_caught_up_with(
    source: Attempt, standby: Standby
) -> None:
    standby.ranks.wrong_from = 14
    order = rehearsed(standby, num_steps=2, tolerance=0.05, replay=True)
    standby.tick(10)
    assert standby.result(order).apart is None
    last = standby.order("catch_up", step=15, digest=seal_at(source, 15))
    standby.tick(20)
    result = standby.result(last)
    assert (result.state, result.error_kind) == ("failed", "Mismatch")
    assert "not bit by bit" in (result.error or "")


def test_a_script_without_losses_is_rehearsed_and_said_to_prove_nothing(
    world: ManualWorld, source: Attempt
) -> None:
    source.tick()
    train(source, 10, staged=10, silent=True)
    train(source, 14, staged=10, silent=True)
    standby = Standby(world, source, SwitchableStore("memory://target"))
    standby.ranks.is_silent = True
    standby.tick()
    order = rehearsed(standby)
    standby.tick(20)
    assert standby.result(order).state == "done"
    assert "call session.step(loss=...)" in standby.result(order).detail


def test_losses_that_the_source_told_before_the_rehearsal_are_remembered(
    source: Attempt, standby: Standby
) -> None:
    standby.order("precopy", num_steps=2)
    standby.tick(8)
    train(source, 300, staged=10)
    order = standby.order("rehearse", num_steps=2)
    standby.tick(10)
    assert standby.result(order).state == "done"
    assert "steps 11 to 12" in standby.result(order).detail


def test_a_rehearsal_without_a_whole_step_here_copies_one_first(
    source: Attempt, standby: Standby
) -> None:
    order = standby.order("rehearse", num_steps=2)
    standby.tick(20)
    assert standby.result(order).state == "done"
    assert "go 10 up to 12" in standby.ranks.told


def test_ranks_that_fail_while_they_rehearse_end_the_attempt_with_their_error(
    source: Attempt, standby: Standby
) -> None:
    order = rehearsed(standby)
    error = RankError(1, "RuntimeError: out of memory", "Traceback ...")
    standby.ranks.view = RanksView(state="failed", error=error)
    status = standby.tick()
    assert standby.result(order).error_kind == "Conflict"
    assert "out of memory" in (standby.result(order).error or "")
    assert (status.state, status.error) == ("failed", "RuntimeError: out of memory")


def test_a_source_that_ends_meanwhile_ends_the_rehearsal(source: Attempt, standby: Standby) -> None:
    standby.ranks.is_stuck = True
    order = rehearsed(standby)
    source.agent.stop()
    source.tick()
    source.drain_to(12)
    source.tick()
    standby.tick(10)
    assert standby.result(order).error_kind == "Conflict"
    assert "stopped" in (standby.result(order).error or "")


@pytest.mark.parametrize("kind", ["rehearse", "catch_up"])
def test_an_agent_without_a_source_has_nothing_to_repeat(source: Attempt, kind: str) -> None:
    source.tick()
    order = source.order(kind, step=1, digest="0" * 64)  # type: ignore[arg-type]
    source.tick()
    assert source.result(order).error_kind == "Conflict"


# -- catching up and going on ----------------------------------------------------------------------


def test_a_replayed_step_is_proved_and_becomes_the_targets_first_commit(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    assert standby.log.sync().records == ()
    hand_over(source, standby, digest, carries_over=False)
    standby.saver.is_slow = True
    go = standby.order("go", step=20, digest=digest)
    standby.tick(3)
    assert standby.ranks.told[-1] == "limit None"
    result, status = standby.result(go), standby.published
    assert (result.state, status.state) == ("done", "running")
    assert status.first_step_at == 5021.0
    assert (status.step or 0) > 20
    assert standby.saver.started == [20]
    assert standby.log.sync().commits == ()
    standby.saver.is_slow = False
    standby.tick()
    first = standby.log.sync().commits[0]
    assert (first.step, first.generation) == (20, 2)
    assert standby.ranks.released == [20]
    assert standby.published.committed_step == 20


def test_nothing_is_restored_or_copied_while_nobody_trains(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    source.store.reads.clear()
    told = len(standby.ranks.told)
    standby.order("catch_up", step=20, digest=digest)
    standby.tick(30)
    assert not [key for key in source.store.reads if key.startswith("packs/")]
    assert standby.ranks.told[told:] == ["limit 20", "capture"]


def test_a_state_that_differs_is_refused_by_its_tensors_names_and_copied_instead(
    source: Attempt, standby: Standby
) -> None:
    standby.ranks.spoils = True
    shadowing(standby, source)
    digest = seal_at(source, 20)
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(30)
    result = standby.result(catch_up)
    assert (result.state, result.error_kind) == ("failed", "Mismatch")
    assert "'w'" in (result.error or "") and "step 20" in (result.error or "")
    assert standby.ranks.told[-1] == "start standby"
    close_by_copy(source, standby, digest)


def close_by_copy(source: Attempt, standby: Standby, digest: str, step: int = 20) -> None:
    copy = standby.order("copy", step=step, digest=digest)
    verify = standby.order("verify", step=step, digest=digest)
    standby.tick(8)
    assert (standby.result(copy).state, standby.result(verify).state) == ("done", "done")
    hand_over(source, standby, digest)
    go = standby.order("go", step=step, digest=digest)
    standby.tick(8)
    assert f"go {step}" in standby.ranks.told
    assert standby.result(go).state == "done"
    assert standby.published.committed_step == step


def test_a_loss_that_differs_while_shadowing_is_said_and_fails_the_catching_up(
    source: Attempt, standby: Standby
) -> None:
    standby.ranks.wrong_from = 16
    shadowing(standby, source)
    train(source, 18, staged=10)
    status = standby.tick(20)
    assert any("the loss of step 16" in line for line in status.warnings)
    digest = seal_at(source, 20)
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(30)
    assert standby.result(catch_up).error_kind == "Mismatch"
    close_by_copy(source, standby, digest)


def test_a_standby_that_is_past_the_sealed_step_does_not_pass_for_it(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    sealed = source.log.sync().last_commit  # the source died: what it did after step 10 is lost
    assert sealed is not None
    digest = str(sealed.manifest_digest)
    catch_up = standby.order("catch_up", step=10, digest=digest)
    standby.tick(10)
    result = standby.result(catch_up)
    assert result.error_kind == "Mismatch"
    assert "which the source lost" in (result.error or "")
    close_by_copy(source, standby, digest, step=10)


def test_catching_up_begins_a_rehearsal_of_its_own_when_there_was_none(
    source: Attempt, standby: Standby
) -> None:
    standby.order("precopy", replay=True)
    standby.tick()
    digest = seal_at(source, 20)
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(40)
    assert standby.result(catch_up).state == "done"


def test_catching_up_outlives_a_source_that_is_away_for_a_while(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    standby.ranks.stages_after = 8
    source.store.is_down = True
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(8)
    assert standby.result(catch_up).state == "running"
    source.store.is_down = False
    standby.tick(30)
    assert standby.result(catch_up).state == "done"
    assert standby.ranks.told.count("capture") == 1


def test_ranks_that_do_not_move_while_nobody_trains_are_given_up_for_a_copy(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    standby.ranks.is_stuck = True
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(int(STUCK_S))
    assert standby.result(catch_up).state == "running"
    standby.world.time += STUCK_S
    standby.tick()
    result = standby.result(catch_up)
    assert (result.state, result.error_kind) == ("failed", "Exhausted")
    standby.ranks.is_stuck = False
    close_by_copy(source, standby, digest)


def test_without_a_step_to_repeat_from_the_move_is_to_be_closed_by_copying(
    source: Attempt, standby: Standby
) -> None:
    digest = seal_at(source, 20)
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick()
    assert standby.result(catch_up).error_kind == "Exhausted"
    close_by_copy(source, standby, digest)


def test_a_staged_step_that_cannot_be_read_is_not_taken_for_equal(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    standby.ranks.has_lost_its_copy = True
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(30)
    result = standby.result(catch_up)
    assert (result.error_kind, standby.ranks.told[-1]) == ("Mismatch", "start standby")
    assert "has no staged step" in (result.error or "")


def test_the_replay_says_when_its_last_step_ended(source: Attempt, standby: Standby) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    began = standby.world.time
    catch_up = standby.order("catch_up", step=20, digest=digest)
    standby.tick(30)
    at = standby.result(catch_up).step_at
    assert at is not None and began <= at < standby.world.time


def test_an_agent_that_cannot_compare_bytes_says_that_it_cannot_replay(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    train(source, 10, staged=10)
    target.tick()
    order = target.order("catch_up", step=10, digest="0" * 64)
    target.tick()
    assert target.result(order).error_kind == "Unsupported"


def test_a_copy_that_closes_a_shadowed_move_sends_the_ranks_back_to_the_gate(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    close_by_copy(source, standby, seal_at(source, 20))


def test_a_replay_within_one_store_goes_on_from_the_commit_that_is_there(
    world: ManualWorld, source: Attempt
) -> None:
    source.tick()
    train(source, 10, staged=10)
    standby = Standby(world, source, source.store)
    standby.tick()
    digest = caught_up(standby, source)
    source.log.handover(
        generation=1, to_url=source.store.url, new_owner="owner-2", migration_id="m", nonce="h"
    )
    standby.log.acquire(generation=2, owner="owner-2", nonce="a")
    go = standby.order("go", step=20, digest=digest)
    standby.tick(6)
    assert standby.ranks.told[-1] == "limit None"
    assert standby.result(go).state == "done"
    assert standby.ranks.released == [20]
    assert standby.saver.started == []


# -- death on the way ------------------------------------------------------------------------------


def test_an_agent_that_dies_before_its_first_commit_copies_the_step_after_all(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    standby.saver.is_slow = True
    standby.order("go", step=20, digest=digest)
    standby.tick()
    assert standby.log.sync().commits == ()
    again = standby.revived(source)
    status = again.tick(12)
    assert [c.step for c in again.log.sync().commits] == [20]
    assert again.log.sync().commits[0].manifest_digest == digest
    assert "go 20" in again.ranks.told
    assert (status.state, status.committed_step) == ("running", 20)
    assert again.store.get(log_key("run-a", 0))


def test_an_agent_that_dies_just_after_the_handover_copies_the_step_after_all(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    again = standby.revived(source)
    go = again.order("go", step=20, digest=digest)
    again.tick(12)
    assert again.result(go).state == "done"
    assert "go 20" in again.ranks.told
    assert not any(told.startswith("go 20 up to") for told in again.ranks.told)


def test_a_revived_agent_outlives_stores_that_are_away_while_it_copies(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    again = standby.revived(source)
    go = again.order("go", step=20, digest=digest)
    source.store.is_down = True
    again.tick(12)
    assert again.result(go).state == "running"
    source.store.is_down = False
    again.store.full_part = "/log/"
    status = again.tick(12)
    assert again.result(go).state == "running", "the run is nowhere else: it is tried again"
    assert any("the store is full" in line for line in status.warnings)
    again.store.full_part = ""
    again.tick(40)
    assert again.result(go).state == "done"


def test_an_agent_that_dies_after_its_first_commit_goes_on_from_its_newest(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    standby.order("go", step=20, digest=digest)
    standby.tick(6)
    standby.ranks.view = RanksView(state="running", step=30, first_step_at=1.0, staged_step=30)
    standby.ranks.is_stuck = True
    standby.tick(6)
    assert [c.step for c in standby.log.sync().commits] == [20, 30]
    again = standby.revived(source)
    again.tick(8)
    assert "go 30" in again.ranks.told


def test_a_revived_agent_that_has_the_run_needs_nothing_of_the_source_any_more(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    standby.order("go", step=20, digest=digest)
    standby.tick(6)
    assert standby.log.sync().commits[0].step == 20
    source.store.is_down = True
    again = standby.revived(source)
    status = again.tick(8)
    assert "go 20" in again.ranks.told
    assert status.state == "running"


def test_a_revived_agent_that_was_given_a_copied_run_does_not_copy_it_again(
    source: Attempt, standby: Standby
) -> None:
    digest = seal_at(source, 20)
    close_by_copy(source, standby, digest)
    source.store.is_down = True
    again = standby.revived(source)
    status = again.tick(8)
    assert "go 20" in again.ranks.told
    assert status.state == "running"


def test_a_revived_agent_whose_run_has_arrived_does_not_rehearse_it(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    again = standby.revived(source)
    again.order("catch_up", step=20, digest=digest, order_id="again")
    again.tick(20)
    assert again.result("again").error_kind == "Conflict"
    assert again.ranks.told == ["start standby"]


def test_a_commit_of_an_earlier_stay_is_not_what_a_returning_run_goes_on_from(
    source: Attempt, standby: Standby
) -> None:
    standby.log.acquire(generation=1, owner="earlier", nonce="e")
    earlier = save_step(standby.store, "run-a", 5, 1)
    standby.log.commit(
        generation=1, step=5, manifest_key=earlier.manifest_key,
        manifest_digest=earlier.manifest_digest, nonce="c",
    )  # fmt: skip
    standby.log.release(generation=1, nonce="r")
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    again = standby.revived(source)
    again.order("go", step=20, digest=digest)
    again.tick(12)
    assert "go 20" in again.ranks.told
    assert not any("go 5" in told or "from 5" in told for told in again.ranks.told)


def test_a_step_that_the_source_pushed_is_gone_on_from_by_ranks_that_were_started_again(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    record = source.log.sync().commits[-1]
    for key in open_checkpoint(source.store, "run-a", record).object_keys():
        standby.store.put(key, source.store.get(key))
    verify = standby.order("verify", step=20, digest=digest)
    standby.tick()
    assert standby.result(verify).state == "done"
    assert standby.ranks.told[-1] == "start standby"
    hand_over(source, standby, digest)
    standby.order("go", step=20, digest=digest)
    standby.tick()
    assert "go 20" in standby.ranks.told


def test_ranks_that_still_rehearse_when_the_run_arrives_are_started_from_its_commit(
    source: Attempt, standby: Standby
) -> None:
    shadowing(standby, source)
    digest = seal_at(source, 20)
    record = source.log.sync().commits[-1]
    for key in open_checkpoint(source.store, "run-a", record).object_keys():
        standby.store.put(key, source.store.get(key))
    hand_over(source, standby, digest)
    go = standby.order("go", step=20, digest=digest)
    standby.tick()
    assert "start from 20" in standby.ranks.told
    assert standby.result(go).state == "done"


def test_a_first_commit_that_fails_is_tried_again_while_the_run_trains(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    standby.saver.failures = [SaveFailed(20, "Unavailable", "the bucket is away; wait")] * 2
    standby.order("go", step=20, digest=digest)
    standby.tick(30)
    assert standby.log.sync().commits[0].step == 20
    assert standby.saver.started == [20, 20, 20]


def test_a_standby_whose_generation_was_passed_is_fenced_and_not_revived_by_a_late_go(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    standby.log.acquire(generation=9, owner="somebody", nonce="n")
    standby.order("go", step=20, digest=digest)
    status = standby.tick()
    assert status.state == "fenced"
    assert standby.ranks.told[-1] == "kill"
    assert standby.saver.started == []


def test_a_go_before_the_commit_leaves_the_ranks_where_they_hold(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    go = standby.order("go", step=20, digest=digest)
    standby.tick(10)
    assert standby.result(go).state == "running"
    assert standby.ranks.view.held_step == 20
    assert "limit None" not in standby.ranks.told


@pytest.mark.parametrize("kind", ["stop", "retire"])
def test_a_rehearsing_standby_that_is_let_go_ends_at_once(
    source: Attempt, standby: Standby, kind: str
) -> None:
    order = rehearsed(standby)
    standby.order(kind)  # type: ignore[arg-type]
    status = standby.tick()
    assert standby.result(order).state == "failed"
    assert status.state in ("stopped", "retired")
    assert standby.ranks.told[-1] == "kill"
    assert standby.log.sync().records == ()


def test_a_target_that_is_drained_before_its_first_commit_seals_what_it_was_given(
    source: Attempt, standby: Standby
) -> None:
    digest = caught_up(standby, source)
    hand_over(source, standby, digest, carries_over=False)
    standby.saver.failures = [SaveFailed(20, "Unavailable", "the bucket is away; wait")]
    standby.order("go", step=20, digest=digest)
    drain = standby.order("drain")
    standby.tick(1)
    standby.ranks.is_stuck = True
    standby.ranks.view = RanksView(
        state="drained", step=22, first_step_at=1.0, staged_step=22, staged_last=True
    )
    standby.tick(12)
    assert (standby.result(drain).state, standby.result(drain).step) == ("done", 22)
