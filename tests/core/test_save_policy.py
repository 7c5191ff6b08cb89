"""How often to save: what can be typed, the best interval, and what it is held to."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Market, Placement
from cloudshift_lab.core.save_policy import (
    FIRST_SAVE_S,
    MAX_INTERVAL_S,
    MIN_INTERVAL_S,
    EverySeconds,
    EverySteps,
    SaveCost,
    SavePolicy,
    YoungDaly,
    assumed_mtbf_s,
    describe,
    fixed_steps,
    format_seconds,
    interval_of,
    parse_save_policy,
    young_daly_interval_s,
)

DAY_S = 86400.0


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("50", EverySteps(50)),
        ("1", EverySteps(1)),
        ("30s", EverySeconds(30)),
        ("1.5 m", EverySeconds(90)),
        ("2H", EverySeconds(7200)),
        (" auto ", YoungDaly()),
    ],
)
def test_a_policy_is_read_and_written_back_as_it_means(text: str, policy: SavePolicy) -> None:
    assert parse_save_policy(text) == policy
    assert parse_save_policy(str(policy)) == policy


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "2.5", "0s", "0.5s", "5d", "s", "never", "nan", "inf", "1e3", "٣", "9" * 30],
)
def test_what_is_no_policy_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(UsageError, match=r"steps \(50\).*auto"):
        parse_save_policy(text)


def test_only_steps_are_decided_by_the_ranks() -> None:
    assert fixed_steps("50") == 50
    assert fixed_steps("30s") is None
    assert fixed_steps("auto") is None


def expected_loss(interval_s: float, save_s: float, mtbf_s: float) -> float:
    """Daly's equation 20 without restarts: wall time per second of work."""
    return mtbf_s * (math.exp((interval_s + save_s) / mtbf_s) - 1) / interval_s


@given(st.floats(0.001, 600), st.floats(1800, 1e7))
def test_no_other_interval_loses_noticeably_less(save_s: float, mtbf_s: float) -> None:
    best_s = young_daly_interval_s(save_s, mtbf_s)
    loss = expected_loss(best_s, save_s, mtbf_s)
    for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0):
        assert loss <= expected_loss(best_s * factor, save_s, mtbf_s) * 1.001


def test_the_interval_of_the_paper_goes_over_into_the_mtbf_where_saves_are_as_long() -> None:
    assert young_daly_interval_s(1.0, DAY_S) == pytest.approx(415.0, abs=0.5)
    assert young_daly_interval_s(200.0, 100.0) == 100.0
    assert young_daly_interval_s(300.0, 100.0) == 100.0


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(0, 1), (1, 0), (-1, 1), (math.inf, 1), (1, 1e999)])
def test_an_interval_of_nonsense_is_refused(save_s: float, mtbf_s: float) -> None:
    with pytest.raises(UsageError, match="no best interval"):
        young_daly_interval_s(save_s, mtbf_s)


def at(market: Market, nodes: int = 1) -> Placement:
    return Placement("aws", "here", "p5", nodes=nodes, market=market)


def test_spot_and_many_nodes_are_assumed_to_fail_more_often() -> None:
    assert assumed_mtbf_s(at("on-demand")) == pytest.approx(DAY_S, rel=0.01)
    assert assumed_mtbf_s(at("spot")) == pytest.approx(DAY_S / 2)
    assert assumed_mtbf_s(at("spot", nodes=9)) == pytest.approx(DAY_S / 10)
    assert assumed_mtbf_s(at("on-demand", nodes=100)) < assumed_mtbf_s(at("on-demand"))


def test_before_anything_is_measured_the_first_save_comes_early() -> None:
    interval = interval_of(YoungDaly(), None, DAY_S)
    assert interval is not None and interval.seconds == FIRST_SAVE_S


def test_auto_says_what_it_chose_and_why() -> None:
    interval = interval_of(YoungDaly(), SaveCost(lost_s=0.2, save_s=4.0, step_s=0.5), DAY_S)
    assert interval is not None
    assert interval.seconds == pytest.approx(185.8, abs=0.5)
    assert describe(YoungDaly(), interval) == (
        "every 3 min 6 s (Young/Daly: a save costs 0.2 s, failures assumed every 24 h)"
    )


def test_the_saver_is_never_asked_for_more_than_it_can_do() -> None:
    interval = interval_of(YoungDaly(), SaveCost(lost_s=0.001, save_s=40.0, step_s=0.5), DAY_S)
    assert interval is not None and interval.seconds == 80.0
    assert "a save takes 40 s" in interval.why


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e4), st.floats(60, 1e9))
def test_auto_stays_within_its_bounds(
    lost_s: float, save_s: float, step_s: float, mtbf_s: float
) -> None:
    interval = interval_of(YoungDaly(), SaveCost(lost_s, save_s, step_s), mtbf_s)
    assert interval is not None
    assert MIN_INTERVAL_S <= interval.seconds <= MAX_INTERVAL_S
    assert interval.why


def test_fixed_policies_are_told_as_they_are() -> None:
    assert interval_of(EverySteps(50), None, DAY_S) is None
    assert describe(EverySteps(50), None) == "every 50 steps"
    assert describe(EverySteps(1), None) == "every step"
    seconds = EverySeconds(90)
    assert describe(seconds, interval_of(seconds, None, DAY_S)) == "every 1 min 30 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.001, "1 ms"), (0.0254, "25 ms"), (0.25, "0.25 s"), (2.04, "2 s"), (41.7, "42 s")],
)
def test_seconds_are_told_in_two_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(
    number=st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,9})?", fullmatch=True), unit=st.sampled_from("smh")
)
@example(number="300", unit="h")
@example(number="999999999", unit="s")
@example(number="1.000000001", unit="h")
def test_a_time_that_was_accepted_is_the_same_once_written_and_read_again(
    number: str, unit: str
) -> None:
    try:
        policy = parse_save_policy(number + unit)
    except UsageError:
        seconds = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        assert not 1 <= seconds < 1e9
    else:
        assert parse_save_policy(str(policy)) == policy


@given(st.floats(1.0, 999_999_999.0))
def test_every_time_can_be_written_and_read_again(seconds: float) -> None:
    assert parse_save_policy(str(EverySeconds(seconds))) == EverySeconds(seconds)
