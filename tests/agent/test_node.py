"""The node agent, tick by tick: ownership, saves, failures and every order."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.node import STOP_PATIENCE_S, NodeAgent
from cloudshift_lab.agent.protocols import RankError, RanksView, SaveFailed
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.storage.log import LogRecord
from cloudshift_lab.storage.memory import MemoryStore

from .conftest import Attempt, InlineSaver, ManualWorld, ScriptedRanks, hand_over, make_job


def drained(source: Attempt, step: int = 12) -> LogRecord:
    """Bring a source to its sealed step by order."""
    source.tick()
    source.run_to(step)
    source.order("drain")
    source.tick()
    source.drain_to(step)
    source.tick()
    sealed = source.log.sync().last_commit
    assert sealed is not None
    return sealed


def test_an_agent_acquires_the_run_before_it_starts_any_rank(source: Attempt) -> None:
    source.store.is_down = True
    source.agent.tick()
    assert source.ranks.told == []
    source.store.is_down = False
    status = source.tick()
    assert source.log.sync().owner == "owner-1"
    assert source.ranks.told == ["start from scratch"]
    assert status.state == "running"


def test_a_staged_step_becomes_a_commit_and_its_memory_is_released(source: Attempt) -> None:
    source.tick()
    source.run_to(10, staged=10)
    status = source.tick()
    commit = source.log.sync().last_commit
    assert commit is not None
    assert (commit.step, commit.generation, commit.final) == (10, 1, False)
    assert source.ranks.released == [10]
    assert source.saver.learned == [commit.manifest_digest]
    assert (status.committed_step, status.step, status.state_bytes) == (10, 10, 48)


def test_a_step_is_saved_once_however_long_it_stays_staged(source: Attempt) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick(40)
    assert source.saver.started == [10]


def test_a_save_that_fails_is_tried_again_later_and_said(source: Attempt) -> None:
    source.tick()
    source.saver.failures = [SaveFailed(10, "Unavailable", "the bucket is away; wait")] * 2
    source.run_to(10, staged=10)
    status = source.tick(2)
    assert status.committed_step is None
    assert source.tick(12).committed_step == 10
    assert source.saver.started == [10, 10, 10]
    assert "the bucket is away; wait" in source.published.warnings


def test_nothing_is_committed_while_the_lease_is_older_than_two_thirds(source: Attempt) -> None:
    source.tick()
    source.store.lost_part = "/hb/"
    source.world.time += 25.0
    source.run_to(10, staged=10)
    source.tick()
    assert (source.saver.started, source.log.sync().commits) == ([10], ())
    source.store.lost_part = ""
    assert source.tick().committed_step == 10


def test_a_newer_owner_ends_the_ranks_at_the_next_commit(source: Attempt) -> None:
    source.tick()
    source.log.acquire(generation=7, owner="somebody", nonce="n")
    source.run_to(10, staged=10)
    status = source.tick()
    assert status.state == "fenced"
    assert "generation 7" in (status.error or "")
    assert source.ranks.told[-1] == "kill"
    assert source.agent.finished
    assert source.log.sync().commits == ()


def test_a_newer_owner_is_noticed_even_when_nothing_is_saved(source: Attempt) -> None:
    source.tick()
    source.run_to(1)
    source.log.acquire(generation=7, owner="somebody", nonce="n")
    assert source.tick(60).state == "fenced"


def test_ranks_that_fail_are_reported_after_their_last_staged_state_is_saved(
    source: Attempt,
) -> None:
    source.tick()
    error = RankError(1, "ValueError: no such row", "Traceback ...")
    source.ranks.view = RanksView(state="failed", step=13, staged_step=10, error=error)
    status = source.tick()
    assert (status.state, status.committed_step) == ("failed", 10)
    assert (status.error, status.error_rank) == ("ValueError: no such row", 1)
    assert status.traceback == "Traceback ..."
    assert source.log.sync().owner is None


def test_a_run_that_finishes_commits_its_last_state_first(source: Attempt) -> None:
    source.tick()
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    status = source.tick()
    assert (status.state, status.committed_step) == ("finished", 20)
    commit = source.log.sync().last_commit
    assert commit is not None and commit.final


def test_a_last_state_that_no_save_can_hold_ends_as_a_failure_that_says_so(
    source: Attempt,
) -> None:
    source.tick()
    source.saver.failures = [SaveFailed(20, "UsageError", "leaves is a lambda; mend it")] * 50
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    status = source.tick(2000)
    assert status.state == "failed"
    assert "leaves is a lambda" in (status.error or "")


def test_a_finished_run_whose_saver_dies_each_time_ends_and_says_how_to_go_on(
    source: Attempt,
) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    died = SaveFailed(20, "CloudshiftError", "the saver was killed by SIGKILL; see saver.log")
    source.saver.failures = [died] * 50
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    status = source.tick(2000)
    assert status.state == "failed"
    for part in ("killed by SIGKILL", "last committed step is 10", "`cloudshift resume run-a`"):
        assert part in (status.error or "")
    assert source.log.sync().owner is None


def test_a_finished_run_waits_for_a_store_that_is_away_for_a_day(source: Attempt) -> None:
    source.tick()
    away = SaveFailed(20, "Unavailable", "the bucket is away; wait")
    source.saver.failures = [away] * 2000
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    while source.saver.failures:
        source.world.time += 31.0
        source.agent.tick()
        assert source.agent.status.state == "running"
    status = source.tick(200)
    assert (status.state, status.committed_step) == ("finished", 20)


def test_the_last_state_is_tried_though_an_earlier_one_was_refused(source: Attempt) -> None:
    source.tick()
    source.saver.failures = [SaveFailed(10, "Exhausted", "the disk is full; free space")] * 8
    source.run_to(10, staged=10)
    source.tick(1000)
    assert source.saver.failures == []
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    status = source.tick(200)
    assert (status.state, status.committed_step) == ("finished", 20)


def test_a_log_that_refuses_the_commit_and_the_release_does_not_keep_a_run_from_its_end(
    source: Attempt,
) -> None:
    source.tick()
    source.store.full_part = "/log/"
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    source.tick(8)
    assert source.agent.status.state == "running"
    status = source.tick(1000)
    assert status.state == "failed"
    assert "no step was committed" in (status.error or "")
    assert source.saver.started == [20]


def test_a_stop_whose_last_state_cannot_be_saved_ends_as_a_failure_that_can_be_resumed(
    source: Attempt,
) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    stop = source.order("stop")
    source.tick()
    source.saver.failures = [SaveFailed(12, "Exhausted", "the disk is full; free space")] * 50
    source.drain_to(12)
    status = source.tick(2000)
    assert (status.state, source.result(stop).state) == ("failed", "failed")
    for part in ("the disk is full", "last committed step is 10", "`cloudshift resume run-a`"):
        assert part in (status.error or "")
    assert source.log.sync().owner is None
    assert source.agent.finished


def test_a_stop_ends_ranks_that_hang_but_not_those_that_still_step(source: Attempt) -> None:
    source.tick()
    source.order("stop")
    for step in range(1, 4):
        source.run_to(step)
        source.world.time += STOP_PATIENCE_S - 10
        assert source.tick().state == "draining"
    source.world.time += STOP_PATIENCE_S
    status = source.tick()
    assert status.state == "failed"
    assert "finished no step" in (status.error or "")


def test_a_stop_lets_what_follows_a_finished_loop_take_its_time(source: Attempt) -> None:
    source.tick()
    source.order("stop")
    source.ranks.view = RanksView(state="running", step=20, staged_step=20, staged_last=True)
    source.tick()
    source.world.time += 2 * STOP_PATIENCE_S
    assert source.tick().state == "draining"


def test_a_drain_whose_step_cannot_be_saved_fails_and_is_still_saved_later(
    source: Attempt,
) -> None:
    source.tick()
    drain = source.order("drain")
    source.tick()
    source.saver.failures = [SaveFailed(12, "Exhausted", "the disk is full; free space")] * 9
    source.drain_to(12)
    source.tick(800)
    assert "the disk is full" in (source.result(drain).error or "")
    source.order("resume")
    source.tick()
    assert source.ranks.told[-1] == "start from 12"


def test_a_refused_drain_and_the_resume_after_it_say_what_is_tried_again_and_why(
    source: Attempt,
) -> None:
    source.tick()
    drain = source.order("drain")
    source.tick()
    source.saver.failures = [SaveFailed(12, "Exhausted", "the disk is full; free space")] * 99
    source.drain_to(12)
    source.tick(800)
    error = source.result(drain).error or ""
    assert "it is tried again, and training then goes on here" in error
    assert "cloudshift resume" not in error, "the attempt has not ended"
    resume = source.order("resume")
    source.tick(8)
    result = source.result(resume)
    assert result.state == "running"
    assert "the disk is full" in (result.detail or "")
    source.saver.failures = []
    source.tick(200)
    assert source.ranks.told[-1] == "start from 12"


def test_a_drain_ends_with_a_final_commit_and_its_digest(source: Attempt) -> None:
    sealed = drained(source)
    result = source.result("drain-0")
    assert (result.state, result.step) == ("done", 12)
    assert result.manifest_digest == sealed.manifest_digest
    assert sealed.final
    assert source.published.state == "drained"
    assert not source.agent.finished


def test_a_drain_waits_for_the_upload_and_is_not_done_before(source: Attempt) -> None:
    source.tick()
    source.order("drain")
    source.tick()
    source.saver.failures = [SaveFailed(12, "Unavailable", "away")]
    source.drain_to(12)
    source.tick(2)
    assert source.result("drain-0").state == "running"
    assert source.published.state == "draining"
    source.tick(10)
    assert source.result("drain-0").state == "done"


def test_a_run_that_finishes_instead_of_draining_refuses_the_drain(source: Attempt) -> None:
    source.tick()
    source.order("drain")
    source.tick()
    source.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    source.tick()
    result = source.result("drain-0")
    assert (result.state, result.error_kind) == ("failed", "Conflict")
    assert source.published.state == "finished"


def test_resume_restarts_the_ranks_from_the_sealed_step(source: Attempt) -> None:
    drained(source)
    source.order("resume")
    status = source.tick()
    assert source.ranks.told[-1] == "start from 12"
    assert (status.state, source.result("resume-1").state) == ("running", "done")
    source.run_to(20, staged=20)
    assert source.tick().committed_step == 20


def test_ranks_drained_again_before_their_first_step_are_sealed_where_they_began(
    source: Attempt,
) -> None:
    sealed = drained(source)
    source.order("resume")
    source.tick()
    source.order("drain")
    source.drain_to(12)
    source.tick()
    result = source.result("drain-2")
    assert (result.state, result.step) == ("done", 12)
    assert result.manifest_digest == sealed.manifest_digest


def test_resume_without_a_drain_changes_nothing(source: Attempt) -> None:
    source.tick()
    source.order("resume")
    source.tick()
    assert source.result("resume-0").state == "done"
    assert source.ranks.told == ["start from scratch"]


def test_resume_overtakes_a_drain_that_is_still_under_way(source: Attempt) -> None:
    source.tick()
    source.order("drain")
    source.tick()
    source.order("resume")
    source.tick()
    assert source.result("drain-0").error_kind == "Conflict"
    assert source.result("resume-1").state == "running"
    source.drain_to(12)
    source.tick()
    assert source.ranks.told[-1] == "start from 12"
    assert source.result("resume-1").state == "done"


def test_a_source_that_was_handed_over_never_resumes(source: Attempt, target: Attempt) -> None:
    sealed = drained(source)
    hand_over(source, target, str(sealed.manifest_digest))
    source.order("resume")
    status = source.tick()
    assert status.state == "fenced"
    assert "start from 12" not in source.ranks.told


def test_an_order_that_is_read_twice_is_obeyed_once(source: Attempt) -> None:
    source.tick()
    source.order("drain", order_id="move-1:drain")
    source.order("drain", order_id="move-1:drain")
    source.tick()
    assert source.ranks.told.count("drain") == 1


def test_retire_ends_the_agent_at_once(source: Attempt) -> None:
    drained(source)
    source.order("retire")
    status = source.tick()
    assert (status.state, source.result("retire-1").state) == ("retired", "done")
    assert source.agent.finished
    assert source.saver.closed


def test_stop_commits_the_last_step_and_gives_the_run_back(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    source.order("stop")
    source.tick()
    assert source.ranks.told[-1] == "drain"
    source.drain_to(13)
    status = source.tick()
    assert (status.state, status.committed_step) == ("stopped", 13)
    assert source.result("stop-0").state == "done"
    assert source.log.sync().owner is None


def test_a_signal_stops_like_an_order(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    source.agent.stop()
    source.agent.stop()
    source.tick()
    source.drain_to(12)
    assert source.tick().state == "stopped"


def test_a_standby_waits_at_the_gate_and_owns_nothing(source: Attempt, target: Attempt) -> None:
    source.tick()
    status = target.tick()
    assert status.state == "standby"
    assert target.ranks.told == ["start standby"]
    assert target.log.sync().owner is None


def test_a_move_goes_from_drain_to_the_first_step_at_the_target(
    source: Attempt, target: Attempt
) -> None:
    target.tick()
    sealed = drained(source)
    digest = str(sealed.manifest_digest)
    copy = target.order("copy", step=12, digest=digest)
    verify = target.order("verify", step=12, digest=digest)
    target.tick()
    assert target.result(copy).state == "done"
    assert target.result(copy).num_bytes > 0
    assert target.result(verify).state == "done"
    go = target.order("go", step=12, digest=digest)
    target.tick()
    assert target.result(go).state == "running"
    assert "go 12" not in target.ranks.told
    hand_over(source, target, digest)
    target.tick()
    assert target.ranks.told[-1] == "go 12"
    target.run_to(13)
    target.tick()
    assert (target.result(go).state, target.published.state) == ("done", "running")
    target.run_to(20, staged=20)
    assert target.tick().committed_step == 20


def test_copying_again_moves_no_byte_twice(source: Attempt, target: Attempt) -> None:
    target.tick()
    digest = str(drained(source).manifest_digest)
    target.order("copy", step=12, digest=digest)
    target.tick()
    again = target.order("copy", step=12, digest=digest)
    target.tick()
    assert target.result(again).num_bytes == 0


def damage(target: Attempt, key: str) -> None:
    """Flip a bit of an object, so that its size stays."""
    data = bytearray(target.store.get(key))
    data[len(data) // 2] ^= 1
    target.store.put(key, bytes(data))


def test_what_is_damaged_at_the_target_is_deleted_and_copied_again(
    source: Attempt, target: Attempt
) -> None:
    target.tick()
    digest = str(drained(source).manifest_digest)
    target.order("copy", step=12, digest=digest)
    target.tick()
    copied = [key for key in target.store.list("") if source.store.size(key) is not None]
    ours = [key for key in copied if "/steps/" in key or key.endswith(".pack")]
    assert len(ours) >= 4  # a pack, a rank's record and chunk table, the manifest
    for number, key in enumerate(ours):
        damage(target, key)
        verify = target.order("verify", step=12, digest=digest, order_id=f"verify-{number}")
        target.tick(8)
        assert target.result(verify).state == "done", key
        assert target.store.get(key) == source.store.get(key)
    for key in ours:
        damage(target, key)
    verify = target.order("verify", step=12, digest=digest)
    target.tick(20)
    assert target.result(verify).state == "done"
    assert f"{len(ours)} damaged ones were copied again" in target.result(verify).detail


def test_a_store_that_damages_what_it_takes_is_refused_and_its_other_objects_stay(
    source: Attempt, target: Attempt
) -> None:
    target.tick()
    digest = str(drained(source).manifest_digest)
    target.store.put("packs/00/another.pack", b"of another run")
    target.store.damaged_part = ".pack"
    target.order("copy", step=12, digest=digest)
    verify = target.order("verify", step=12, digest=digest)
    target.tick(8)
    result = target.result(verify)
    assert (result.state, result.error_kind) == ("failed", "Corrupt")
    assert target.store.size("packs/00/another.pack") is not None


def test_a_copy_survives_a_source_that_is_away_for_a_while(
    source: Attempt, target: Attempt
) -> None:
    target.tick()
    digest = str(drained(source).manifest_digest)
    source.store.is_down = True
    copy = target.order("copy", step=12, digest=digest)
    target.tick()
    assert target.result(copy).state == "running"
    source.store.is_down = False
    target.tick()
    assert target.result(copy).state == "done"


def test_a_copy_of_a_step_that_was_never_committed_is_refused(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    target.tick()
    copy = target.order("copy", step=99, digest="0" * 64)
    target.tick()
    assert target.result(copy).error_kind == "NotFound"


def test_precopy_brings_only_what_the_last_two_commits_share(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    for step in (10, 20):
        source.run_to(step, staged=step)
        source.tick()
    target.tick()
    precopy = target.order("precopy")
    target.tick()
    result = target.result(precopy)
    assert (result.state, result.num_bytes) == ("done", 0)


def test_a_standby_that_is_released_ends_without_touching_the_log(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    target.tick()
    target.order("stop")
    status = target.tick()
    assert (status.state, target.log.sync().records) == ("stopped", ())
    assert source.log.sync().owner == "owner-1"


def test_a_revived_agent_continues_from_its_own_newest_commit(
    source: Attempt, world: ManualWorld
) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    again = Attempt(world, source.store, source.job)
    again.tick()
    assert again.ranks.told == ["start from 10"]


def test_an_agent_started_again_after_its_run_was_given_back_does_not_wait_for_ever(
    source: Attempt, target: Attempt, world: ManualWorld
) -> None:
    target.tick()
    digest = str(drained(source).manifest_digest)
    target.order("copy", step=12, digest=digest)
    target.tick()
    hand_over(source, target, digest)
    target.order("go", step=12, digest=digest)
    target.tick()
    target.agent.stop()
    target.tick()
    target.drain_to(12)
    assert target.tick().state == "stopped"
    again = Attempt(world, target.store, target.job, source.store)
    assert again.tick().state == "fenced"
    assert again.ranks.told[-1] == "kill"


def test_a_restore_from_a_step_that_does_not_exist_ends_with_its_reason(
    world: ManualWorld,
) -> None:
    store = MemoryStore("memory://empty")
    job = make_job(restore_step=5)
    ranks = ScriptedRanks()
    agent = NodeAgent(
        job, store=store, source_store=None, world=world, ranks=ranks,
        saver=InlineSaver(store, job),
    )  # fmt: skip
    agent.tick()
    assert agent.status.state == "failed"
    assert (agent.status.error or "").startswith(NotFound.__name__)
    assert ranks.told == ["kill"]


def test_an_outage_of_the_store_never_raises_into_the_loop(source: Attempt) -> None:
    source.tick()
    source.run_to(5)
    source.store.is_down = True
    for _ in range(10):
        source.agent.tick()
        source.world.time += 1.0
    source.store.is_down = False
    assert source.tick().state == "running"


@pytest.mark.parametrize("kind", ["drain", "copy", "go"])
def test_an_order_is_called_off_when_the_attempt_ends(target: Attempt, kind: str) -> None:
    target.tick()
    order = target.order(kind, step=1, digest="0" * 64)  # type: ignore[arg-type]
    target.order("retire")
    target.tick()
    assert target.result(order).state == "failed"


def test_a_note_whose_numbers_change_takes_one_line_of_the_warnings(source: Attempt) -> None:
    source.tick()
    source.saver.failures = [SaveFailed(10, "Unavailable", "the bucket is away; wait")]
    source.run_to(10, staged=10)
    for number in range(1, 9):
        source.agent.note("telemetry", f"{number} rows were dropped")
        source.tick(2)
    source.tick(10)
    assert source.published.warnings == ("the bucket is away; wait", "8 rows were dropped")
