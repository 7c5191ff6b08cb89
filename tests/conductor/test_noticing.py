from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloudshift_lab.conductor.noticing import check_notice, notice_view
from cloudshift_lab.core.asks import NoticeAsk
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.orders import AgentStatus
from cloudshift_lab.core.run import SaveStats
from cloudshift_lab.migration import EffectDone, Saga, start, step
from cloudshift_lab.migration.events import Decided
from cloudshift_lab.sim.plans import sample_decision, sample_plan

AT = 1_100.0


def status(**changes: Any) -> AgentStatus:
    told = AgentStatus(
        run_id="run-1", generation=1, state="running", beat=1, at=AT, step=100, committed_step=90,
        step_s=2.0, saves=SaveStats(save_s=10.0), state_bytes=10**9,
    )  # fmt: skip
    return msgspec.structs.replace(told, **changes)


def look(within_s: float, told: AgentStatus | None, saga: Saga | None = None) -> Any:
    return notice_view("run-1", NoticeAsk(within_s=within_s), told, saga, now=AT)


def approved() -> Saga:
    saga = start(sample_plan())
    saga, _ = step(saga, Decided(sample_decision(saga.plan), at=AT))
    return saga


def test_enough_time_loses_no_step() -> None:
    view = look(30.0, status())
    assert (view.finishes, view.lost_steps, view.does) == (True, 0, ("drain",))
    assert view.deadline == AT + 30.0
    assert "stays saved in its store" in view.words


def test_too_little_time_says_how_many_steps_are_lost() -> None:
    view = look(5.0, status())
    assert (view.finishes, view.lost_steps) == (False, 11)


def test_a_staged_step_that_is_nearly_saved_counts() -> None:
    assert look(11.0, status(staged_step=98)).lost_steps == 3
    assert look(11.0, status(staged_step=90)).lost_steps == 11


def test_nothing_known_of_the_agent_is_no_reason_to_fail_and_is_said() -> None:
    assert look(30.0, None).finishes
    assert "a step's time is unknown, 1 s assumed" in look(30.0, None).words


def test_what_nobody_has_measured_is_said_to_be_assumed_and_nothing_else_is() -> None:
    assert "assumed" not in look(30.0, status()).words
    assert look(30.0, status(step_s=None)).words.endswith("a step's time is unknown, 1 s assumed")
    words = look(30.0, status(saves=SaveStats())).words
    assert "a save's time is unknown, 20 s assumed" in words
    assert "a step's time" not in words


def test_bytes_that_went_to_a_target_that_was_given_up_are_still_to_be_copied() -> None:
    saga = msgspec.structs.replace(approved(), bytes_moved=10**12, bytes_per_s=1.0)
    assert "before the machine goes" in look(60.0, status(), saga).words
    again = msgspec.structs.replace(saga, tries=1)
    assert "after the machine went" in look(60.0, status(), again).words


def test_an_unmeasured_save_is_assumed_from_the_size() -> None:
    assert not look(10.0, status(saves=SaveStats())).finishes
    assert look(30.0, status(saves=SaveStats())).finishes


def test_an_open_move_says_when_the_run_trains_again() -> None:
    view = look(30.0, status(), approved())
    assert view.migration_id == "mig-1"
    assert "at its target" in view.words
    proposed = look(30.0, status(), start(sample_plan()))
    assert "at its target" not in proposed.words


def test_a_target_that_is_ready_saves_its_provisioning() -> None:
    saga = approved()
    ready, _ = step(saga, EffectDone("provision", AT))
    before, after = (look(120.0, status(), each) for each in (saga, ready))
    assert "move" in after.does
    assert "before the machine goes" in after.words
    assert before.finishes


def test_a_target_that_goes_means_rolling_back() -> None:
    ask = NoticeAsk(within_s=30.0, side="target")
    view = notice_view("run-1", ask, status(), approved(), now=AT)
    assert (view.does, view.finishes, view.side) == (("roll back",), True, "target")


def sealed(phase: str, **changes: Any) -> Saga:
    return msgspec.structs.replace(approved(), phase=phase, sealed_step=100, **changes)


def target_goes(saga: Saga, told: AgentStatus | None = None) -> Any:
    return notice_view("run-1", NoticeAsk(within_s=30.0, side="target"), told, saga, now=AT)


def test_a_target_that_goes_after_the_commit_is_the_run_itself() -> None:
    owner = status(generation=2, step=103, committed_step=None)
    view = target_goes(sealed("committed"), owner)
    assert (view.does, view.finishes) == (("drain",), True)
    assert "source" not in view.words
    short = msgspec.structs.replace(owner, saves=SaveStats(save_s=60.0))
    assert target_goes(sealed("committed"), short).lost_steps == 4


def test_a_source_that_goes_after_the_commit_takes_nothing_with_it() -> None:
    view = look(1.0, status(), sealed("committed"))
    assert (view.does, view.finishes, view.lost_steps) == ((), True, 0)
    assert "at its target already" in view.words


@pytest.mark.parametrize(
    ("saga", "told"),
    [
        (sealed("copying"), "resumes at its source, from step 100"),
        (sealed("copying", notice=AT + 9), "its source's machine goes too"),
        (sealed("committing"), "unless it is handed over already"),
    ],
)
def test_a_drained_source_is_promised_only_what_will_be(saga: Saga, told: str) -> None:
    assert told in target_goes(saga).words


@pytest.mark.parametrize("within_s", [-1.0, 1e6, float("nan")])
def test_an_impossible_notice_is_refused(within_s: float) -> None:
    with pytest.raises(UsageError, match="0 s to 24 h"):
        check_notice(NoticeAsk(within_s=within_s))
