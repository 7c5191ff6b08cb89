"""Approval rules: what can be typed, what they say to a plan, and that they never say nonsense."""

from __future__ import annotations

import re
import time

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudshift_lab.core.approval import (
    DAY_S,
    GRAMMAR,
    ApprovalRule,
    Window,
    judge,
    parse,
    planned_pause_s,
    second_of_day,
    zone_of,
)
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Bill, Closing, Plan

HOUR = 3600.0
NIGHT = 23 * HOUR + 600
NOON = 12 * HOUR
WHOLE = (
    "auto if price < 2.5/h and break-even < 4h and pause < 30s and at 22:00-06:00 "
    "quiet 23:00-07:00 approvers 2 expires 30m"
)


def plan(*, break_even_s: float | None = 4_320.0, pause_s: float = 12.0, **changes: object) -> Plan:
    """A move whose bill says so."""
    bill = Bill((), -1, 1, 1, break_even_s, pause_s, 0, simulated=True)
    here, there = Placement("a", "x", "m"), Placement("b", "y", "m")
    made = Plan("mig-1", "run-1", here, there, "s3://a", "gs://b", 1, bill, "move", 0.0, 600.0)
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ask", ApprovalRule("ask")),
        (" AUTO ", ApprovalRule("auto")),
        ("never", ApprovalRule("never")),
        ("auto if price<$2.50", ApprovalRule("auto", price_micro_usd_per_h=2_500_000)),
        ("auto if price < 2.5 usd/h", ApprovalRule("auto", price_micro_usd_per_h=2_500_000)),
        ("auto if pause < 90 s", ApprovalRule("auto", pause_s=90.0)),
        ("auto if at 22:00-6:00", ApprovalRule("auto", at=Window(1320, 360))),
        ("ask quiet 18:00-24:00", ApprovalRule("ask", quiet=Window(1080, 0))),
        ("auto expires 1 d", ApprovalRule("auto", expires_s=DAY_S)),
        (
            WHOLE,
            ApprovalRule(
                "auto", price_micro_usd_per_h=2_500_000, break_even_s=4 * HOUR, pause_s=30.0,
                at=Window(1320, 360), quiet=Window(1380, 420), approvers=2, expires_s=1800.0,
            ),
        ),
    ],
)  # fmt: skip
def test_a_rule_is_read_as_it_is_meant(text: str, rule: ApprovalRule) -> None:
    assert parse(text) == rule


def test_a_rule_is_written_as_it_was_typed() -> None:
    assert str(parse(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("maybe", "'maybe'"),
        ("auto if", "ends too early"),
        ("auto if price", "ends too early"),
        ("auto when price < 3", "'when'"),
        ("auto if price > 3", "'>'"),
        ("auto if price < cheap", "'cheap'"),
        ("auto if price < 0", "'0'"),
        ("auto if price < 2 and price < 3", "'price'"),
        ("auto if price < 2, pause < 3s", "'2,'"),
        ("auto if break-even < 4", "'4'"),
        ("auto if pause < 0s", "'0s'"),
        ("auto if at 25:00-26:00", "'25:00-26:00'"),
        ("auto if at 9-17", "'9-17'"),
        ("ask quiet 07:00-07:00", "'07:00-07:00'"),
        ("ask quiet 00:00-24:00", "'00:00-24:00'"),
        ("ask approvers 0", "'0'"),
        ("ask approvers 10", "'10'"),
        ("ask quiet 1:00-2:00 quiet 1:00-2:00", "'quiet'"),
        ("ask if price < 2", "'if'"),
        ("never approvers 2", "'approvers'"),
        ("", "ends too early"),
        ("auto if pause < ٣s", "'٣s'"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_word_and_the_grammar(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert word in caught.value.message
    assert caught.value.message.endswith(GRAMMAR)
    assert "\n" not in caught.value.message


@given(st.one_of(st.text(max_size=60), st.text("autoifprice<>0123456789.:-hsm $", max_size=60)))
@example("auto if price < " + "9" * 40)
@example("ask expires 999999999d")
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        rule = parse(text)
    except UsageError as error:
        assert GRAMMAR in error.message
        assert len(error.message) < len(GRAMMAR) + 200
    else:
        assert parse(str(rule)) == rule


windows = st.builds(Window, st.integers(0, 1439), st.integers(0, 1439)).filter(
    lambda window: window.start_min != window.end_min
)
durations = st.floats(0.001, 1e8).map(lambda seconds: round(seconds, 3))
conditions = {
    "price_micro_usd_per_h": st.none() | st.integers(1, 10**12),
    "break_even_s": st.none() | durations,
    "pause_s": st.none() | durations,
    "at": st.none() | windows,
}
more = {
    "quiet": st.none() | windows,
    "approvers": st.integers(1, 9),
    "expires_s": st.none() | durations,
}
rules = st.one_of(
    st.builds(ApprovalRule, st.just("auto"), **conditions, **more),
    st.builds(ApprovalRule, st.just("ask"), **more),
    st.just(ApprovalRule("never")),
)


@given(rules)
def test_every_rule_survives_being_written_down(rule: ApprovalRule) -> None:
    assert parse(str(rule)) == rule
    assert parse(str(rule).upper()) == rule


@given(rules, st.floats(0, DAY_S - 1), st.none() | durations, st.none() | st.integers(0, 10**12))
def test_a_verdict_follows_from_the_conditions_alone(
    rule: ApprovalRule, now: float, break_even_s: float | None, price: int | None
) -> None:
    judged = judge(rule, plan(break_even_s=break_even_s), now, price_micro_usd_per_h=price)
    holds = rule.mode == "auto" and all(
        (
            rule.price_micro_usd_per_h is None
            or (price is not None and price < rule.price_micro_usd_per_h),
            rule.break_even_s is None
            or (break_even_s is not None and break_even_s < rule.break_even_s),
            rule.pause_s is None or rule.pause_s > 12.0,
            rule.at is None or rule.at.holds(now),
        )
    )
    if rule.mode == "never":
        assert judged.verdict == "refuse"
    elif holds:
        assert judged.verdict == "approve"
    else:
        is_quiet = rule.quiet is not None and rule.quiet.holds(now)
        assert judged.verdict == ("later" if is_quiet else "ask")
    assert "\n" not in judged.because


@given(rules, st.floats(0, DAY_S - 1))
def test_who_is_told_later_is_out_of_the_quiet_hours_then(rule: ApprovalRule, now: float) -> None:
    judged = judge(rule, plan(), now)
    left_s = rule.quiet_left_s(now)
    if judged.verdict != "later":
        assert judged.verdict != "ask" or left_s == 0.0
        return
    assert rule.quiet is not None
    assert 0 < left_s < DAY_S
    end = (now + left_s) % DAY_S
    assert end == pytest.approx(rule.quiet.end_min * 60.0, abs=1e-6)


@given(windows, st.floats(0, DAY_S - 1))
def test_a_window_and_its_complement_share_no_moment(window: Window, now: float) -> None:
    complement = Window(window.end_min, window.start_min)
    assert window.holds(now) != complement.holds(now)


@given(
    st.integers(1, 10**10), st.integers(0, 10**10), durations, durations
)  # fmt: skip
def test_the_numbers_of_a_reason_read_as_true_as_they_are(
    limit: int, price: int, limit_s: float, break_even_s: float
) -> None:
    rule = ApprovalRule("auto", price_micro_usd_per_h=limit, break_even_s=limit_s)
    words = judge(rule, plan(break_even_s=break_even_s), NOON, price_micro_usd_per_h=price).because
    comparison = re.compile(r"([0-9.e+-]+) (?:[smh] )?(is not <|<) ([0-9.]+)")
    compared = comparison.findall(words)
    assert compared
    for left, sign, right in compared:
        assert (float(left) < float(right)) == (sign == "<")


def test_the_reasons_of_an_approval_name_every_condition() -> None:
    rule = parse("auto if price < 2.5/h and break-even < 4h and at 22:00-06:00")
    judged = judge(rule, plan(), NIGHT, price_micro_usd_per_h=1_900_000)
    assert (judged.verdict, judged.because) == (
        "approve",
        "auto: break-even 1.2 h < 4 h, price 1.90 < 2.50 USD/h, 23:10 is within 22:00-06:00",
    )


def test_the_reasons_of_a_question_name_only_what_failed() -> None:
    rule = parse("auto if price < 2.5/h and break-even < 4h and at 22:00-06:00")
    judged = judge(rule, plan(break_even_s=None), NOON, price_micro_usd_per_h=1_900_000)
    assert judged.verdict == "ask"
    assert judged.because == (
        "ask: it never pays for itself (break-even < 4h is wanted), 12:00 is not within 22:00-06:00"
    )


def test_an_unknown_price_is_never_below_a_limit() -> None:
    judged = judge(parse("auto if price < 2.5/h"), plan(), NOON)
    assert (judged.verdict, judged.because) == (
        "ask", "ask: the price is not known (less than 2.50 USD/h is wanted)",
    )  # fmt: skip


def test_nobody_is_asked_in_quiet_hours_but_a_policy_may_approve() -> None:
    rule = parse("ask quiet 23:00-07:00")
    quiet = judge(rule, plan(), NIGHT)
    assert (quiet.verdict, rule.quiet_left_s(NIGHT)) == ("later", 7 * HOUR + 50 * 60)
    assert "nobody is asked before 07:00" in quiet.because
    assert judge(parse("auto quiet 23:00-07:00"), plan(), NIGHT).verdict == "approve"
    assert judge(parse("ask quiet 23:00-07:00"), plan(), NOON).verdict == "ask"


@pytest.mark.parametrize("text", ["auto", "auto if price < 9/h", "auto if at 22:00-06:00"])
def test_a_worse_bill_is_approved_only_by_a_rule_about_the_bill(text: str) -> None:
    worse = judge(parse(text), plan(), NIGHT, price_micro_usd_per_h=1, is_worse=True)
    assert (worse.verdict, "worse as measured" in worse.because) == ("ask", True)
    rule = parse("auto if break-even < 4h")
    assert judge(rule, plan(), NIGHT, is_worse=True).verdict == "approve"
    assert judge(rule, plan(break_even_s=None), NIGHT, is_worse=True).verdict == "ask"


def test_what_is_not_sold_any_more_is_approved_by_no_rule() -> None:
    judged = judge(parse("auto"), plan(), NOON, is_sold=False)
    assert (judged.verdict, "not sold any more" in judged.because) == ("ask", True)


def test_times_are_said_with_their_zone() -> None:
    night = judge(parse("auto if at 22:00-06:00"), plan(), NIGHT, zone="UTC+01:00")
    assert night.because == "auto: 23:10 UTC+01:00 is within 22:00-06:00"
    quiet = judge(parse("ask quiet 23:00-07:00"), plan(), NIGHT, zone="UTC+01:00")
    assert "nobody is asked before 07:00 UTC+01:00" in quiet.because


def test_never_refuses_whatever_the_plan_says() -> None:
    assert judge(parse("never"), plan(), NOON).verdict == "refuse"


def test_the_pause_that_counts_is_that_of_the_chosen_closing() -> None:
    ways = (Closing("copy", 40.0, 2.0, 10), Closing("replay", 5.0, 0.5, 20))
    assert planned_pause_s(plan(closings=ways, closing="replay")) == 5.0
    assert planned_pause_s(plan(closings=ways, closing="copy")) == 40.0
    assert planned_pause_s(plan()) == 12.0
    rule = parse("auto if pause < 30s")
    assert judge(rule, plan(closings=ways, closing="replay"), NOON).verdict == "approve"
    judged = judge(rule, plan(closings=ways, closing="copy"), NOON)
    assert judged.because == "ask: pause 40.0 s is not < 30 s"


def test_a_policy_that_decides_is_named_with_its_rule() -> None:
    assert parse("auto if pause<30s").by == "policy: auto if pause < 30s"


def test_the_second_of_the_day_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    midnight = 1_764_028_800.0  # 2025-11-25 00:00 UTC
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert second_of_day(midnight + NIGHT) == NIGHT
    monkeypatch.setenv("TZ", "Etc/GMT-2")
    time.tzset()
    assert second_of_day(midnight) == 2 * HOUR
    assert zone_of(midnight) == "UTC+02:00"
    monkeypatch.undo()
    time.tzset()
