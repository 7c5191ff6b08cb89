"""What a notice allows, known beforehand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.migration import GraceFacts, plan_grace

FACTS = GraceFacts(step_s=2.0, save_s=10.0, last_commit_age_steps=50)


def test_thirty_seconds_are_enough_for_a_seal_of_twelve() -> None:
    plan = plan_grace(30.0, FACTS)
    assert (plan.does, plan.finishes, plan.lost_steps, plan.later_s) == (("drain",), True, 0, None)
    assert plan.words == (
        "30 s are enough to save the newest step (12 s); "
        "the run stays saved in its store until it is resumed or moved"
    )


def test_too_short_a_notice_says_what_will_be_lost() -> None:
    plan = plan_grace(8.0, FACTS)
    assert (plan.does, plan.finishes, plan.lost_steps) == ((), False, 50)
    assert "8.0 s are too short to save the newest step (12 s): 50 steps will be lost" in plan.words


def test_a_state_that_is_staged_already_is_saved_when_the_newest_cannot_be() -> None:
    facts = GraceFacts(2.0, 10.0, 50, staged_age_steps=4, staged_left_s=6.0)
    assert plan_grace(8.0, facts).does == ("stage",)
    assert plan_grace(8.0, facts).lost_steps == 4
    assert plan_grace(5.0, facts).lost_steps == 50


def test_a_target_that_is_ready_takes_over_before_the_machine_goes() -> None:
    facts = GraceFacts(2.0, 10.0, 50, provision_s=0.0, copy_s=5.0, restore_s=3.0)
    assert plan_grace(30.0, facts).does == ("drain", "move")
    late = plan_grace(15.0, facts)
    assert late.does == ("drain",)
    assert late.later_s == 5.0
    assert late.words.endswith("the run trains again at its target 5.0 s after the machine went")


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e3), st.integers(0, 1_000))
def test_more_time_never_loses_more(
    within_s: float, more_s: float, save_s: float, age: int
) -> None:
    facts = GraceFacts(1.0, save_s, age, staged_age_steps=age // 2, staged_left_s=save_s / 2)
    assert plan_grace(within_s + more_s, facts).lost_steps <= plan_grace(within_s, facts).lost_steps
