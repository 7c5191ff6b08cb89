"""Ranks that fail are started again where they were, and not for ever."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.protocols import RankError, RanksView

from .conftest import Attempt, ManualWorld, SwitchableStore, make_job

KILLED = RankError(2, "rank 2 was killed by SIGKILL (often: out of memory); see its log")


@pytest.fixture
def healed(world: ManualWorld) -> Attempt:
    """An owner's agent that may start its ranks again three times, in its first steps."""
    attempt = Attempt(world, SwitchableStore("memory://source"), make_job(restarts=3))
    attempt.tick()
    attempt.run_to(5)
    attempt.tick()
    return attempt


def fail(attempt: Attempt, error: RankError = KILLED, *, staged: int | None = None) -> None:
    attempt.ranks.view = RanksView(state="failed", staged_step=staged, error=error)
    attempt.tick()


def to_gate(attempt: Attempt) -> None:
    staged = attempt.ranks.view.staged_step
    attempt.ranks.view = RanksView(state="gate", staged_step=staged)
    attempt.tick()


def test_what_survivors_staged_is_committed_and_the_ranks_go_on_from_it(healed: Attempt) -> None:
    fail(healed, staged=7)
    assert healed.ranks.told[-1] == "restart"
    assert healed.agent.status.state == "running"
    to_gate(healed)
    assert healed.published.committed_step == 7
    assert healed.ranks.told[-1] == "go 7"
    healed.run_to(9)
    status = healed.tick()
    assert (status.state, status.step, status.error) == ("running", 9, None)
    assert any("started again after step 7" in warning for warning in status.warnings)


def test_ranks_wait_at_the_gate_until_what_they_left_is_saved(healed: Attempt) -> None:
    healed.saver.is_slow = True
    fail(healed, staged=7)
    to_gate(healed)
    assert healed.ranks.told[-1] == "restart"
    healed.saver.is_slow = False
    healed.tick()
    assert healed.ranks.told[-1] == "go 7"


def test_a_save_that_never_gets_through_does_not_hold_up_the_ranks(healed: Attempt) -> None:
    fail(healed, staged=7)
    to_gate(healed)
    healed.run_to(9)
    healed.tick()
    healed.saver.is_slow = True
    fail(healed, staged=9)
    to_gate(healed)
    healed.world.time += 61.0
    healed.tick()
    assert healed.ranks.told[-1] == "go 7"


def test_a_run_without_any_commit_begins_again(healed: Attempt) -> None:
    fail(healed)
    to_gate(healed)
    assert healed.ranks.told[-2:] == ["restart", "go scratch"]


def test_starts_without_progress_come_to_an_end_that_says_why(healed: Attempt) -> None:
    fail(healed, staged=7)
    for _ in range(3):
        to_gate(healed)
        fail(healed)
    status = healed.published
    assert (status.state, status.error) == ("failed", KILLED.message)
    assert healed.ranks.told.count("restart") == 3
    assert any("no progress in 4 starts after step 7" in line for line in status.warnings)


def test_progress_earns_new_starts(healed: Attempt) -> None:
    for step in range(7, 17):
        fail(healed, staged=step)
        to_gate(healed)
        healed.run_to(step)
        healed.tick()
    assert healed.ranks.told.count("restart") == 10
    assert healed.published.state == "running"


def test_the_same_error_after_the_same_step_is_the_scripts_own(healed: Attempt) -> None:
    error = RankError(1, "ValueError: no such row", "Traceback ...")
    fail(healed, error, staged=7)
    to_gate(healed)
    fail(healed, error)
    assert (healed.published.state, healed.published.error) == ("failed", error.message)
    assert healed.ranks.told.count("restart") == 1


def test_an_error_before_the_first_step_ends_the_attempt_at_once(world: ManualWorld) -> None:
    attempt = Attempt(world, SwitchableStore("memory://source"), make_job(restarts=3))
    attempt.tick()
    fail(attempt, RankError(0, "ImportError: no", "Traceback ..."))
    assert attempt.published.state == "failed"
    assert "restart" not in attempt.ranks.told


def test_a_stop_while_the_ranks_start_again_saves_what_they_left(healed: Attempt) -> None:
    fail(healed, staged=7)
    healed.agent.stop()
    healed.tick()
    assert (healed.published.state, healed.published.committed_step) == ("stopped", 7)


def test_ranks_that_are_asked_for_their_last_state_are_not_started_again(healed: Attempt) -> None:
    healed.order("drain")
    healed.tick()
    fail(healed)
    assert healed.published.state == "failed"
    assert "restart" not in healed.ranks.told


def test_without_restarts_a_failure_is_the_end(world: ManualWorld) -> None:
    attempt = Attempt(world, SwitchableStore("memory://source"), make_job())
    attempt.tick()
    attempt.run_to(5)
    attempt.tick()
    fail(attempt, staged=7)
    assert (attempt.published.state, attempt.published.committed_step) == ("failed", 7)
