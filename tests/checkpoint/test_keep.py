"""Which steps a policy keeps."""

import pytest

from cloudshift_lab.checkpoint.keep import (
    AnyOf,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepEverySeconds,
    KeepLatest,
    parse_keep,
    steps_to_forget,
)
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.storage.log import LogRecord


def commits(*steps, every_s=60.0):
    return [
        LogRecord(seq=i, kind="commit", generation=1, owner="a", nonce=str(i), at=i * every_s,
                  step=step)
        for i, step in enumerate(steps)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("all", KeepAll()),
        ("5", KeepLatest(5)),
        ("3, every=1000", AnyOf((KeepLatest(3), KeepEvery(1000)))),
        ("1,every=2h,best=2", AnyOf((KeepLatest(1), KeepEverySeconds(7200), KeepBest(2)))),
    ],
)
def test_a_policy_is_read_from_text(text, policy):
    assert parse_keep(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "-1", "every=0", "every=1w", "best", "5,", "²", "often",
        "9" * 5000, "every=" + "9" * 5000, "best=" + "9" * 5000, "every=" + "9" * 400 + "d",
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_with_what_may_be_said(text):
    with pytest.raises(UsageError, match="give 'all', or a number"):
        parse_keep(text)


def test_the_newest_steps_stay():
    assert steps_to_forget(commits(10, 20, 30, 40), KeepLatest(2)) == (10, 20)
    assert steps_to_forget(commits(10, 20), KeepLatest(5)) == ()
    assert steps_to_forget([], KeepLatest(1)) == ()


def test_one_step_of_every_thousand_stays_though_no_save_hits_it():
    listed = commits(990, 1003, 1500, 2001, 2800, 3100)
    assert steps_to_forget(listed, parse_keep("1,every=1000")) == (1500, 2800)


def test_forgetting_again_changes_nothing():
    listed = commits(*range(7, 5000, 13))
    policy = parse_keep("3,every=500,every=1h")
    gone = set(steps_to_forget(listed, policy))
    left = [c for c in listed if c.step not in gone]
    assert gone
    assert steps_to_forget(left, policy) == ()


def test_the_best_steps_stay_and_one_without_a_figure_is_never_best():
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: float("nan")}
    assert steps_to_forget(commits(10, 20, 30, 40, 50), KeepBest(2), metrics=losses) == (10, 40)


def test_the_newest_and_the_pinned_stay_whatever_the_policy_says():
    assert steps_to_forget(commits(10, 20, 30), KeepBest(1), pinned=[10]) == (20,)


def test_the_largest_numbers_that_are_read_can_be_applied():
    for text in ("9" * 12, "every=" + "9" * 12, "every=" + "9" * 12 + "d", "best=" + "9" * 12):
        assert steps_to_forget(commits(10, 20), parse_keep(text)) in ((), (10,))


def test_a_refusal_does_not_repeat_a_whole_page():
    with pytest.raises(UsageError) as refused:
        parse_keep("9" * 5000)
    assert len(str(refused.value)) < 300
