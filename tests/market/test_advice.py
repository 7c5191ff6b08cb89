"""Advice says move only when that pays, sums exactly, and tells what would change it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import EgressTier
from cloudshift_lab.market.advice import Advice, Link, Question, advise
from cloudshift_lab.market.commitments import Commitment
from cloudshift_lab.market.quotes import Quote

NOW = 1_795_000_000.0
DAY = 86_400.0
THERE = "gcp:us-central1"


def quote(usd_h: float, cloud: str = "gcp", **more: object) -> Quote:
    plain = Quote(
        cloud=cloud, region="us-central1" if cloud == "gcp" else "us-east-1",
        instance_type="a3-highgpu-8g" if cloud == "gcp" else "p5.48xlarge", accelerator="H100",
        num_accelerators=8, accelerator_memory_gb=80, micro_usd_per_h=round(usd_h * 1e6),
        priced_at=NOW, seen_at=NOW, source="test", confidence="listed",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **more)


HERE = quote(55.04, "aws")


def question(usd_h: float = 38.53, **more: object) -> Question:
    egress = more.pop("egress", 0.09)
    link = Link((EgressTier(None, round(float(str(egress)) * 1e6)),), 625e6)
    plain = Question(
        here=HERE, offers=(quote(usd_h),), now=NOW, left_s=48 * 3600.0, links={THERE: link}
    )
    return msgspec.structs.replace(plain, **more)


def test_thirty_percent_cheaper_and_ten_thousand_dollars_of_egress_is_no_bargain_for_two_days() -> (
    None
):
    """128 TiB at $0.076/GB is $10,000; six hours at 52 Gbit/s (the founding example)."""
    link = Link((EgressTier(None, 76_294),), 128 * 2**40 / (6 * 3600))
    asked = question(carry_bytes=128 * 2**40, links={THERE: link})
    advice = advise(asked)
    assert advice.verdict == "stay"
    assert -9_700e6 < advice.net.p50 < -9_200e6
    assert advice.break_even_h is not None
    assert 600 < advice.break_even_h < 640
    month = advise(msgspec.structs.replace(asked, left_s=720 * 3600.0))
    assert month.verdict == "move"
    assert 1_400e6 < month.net.p50 < 1_900e6
    many = advise(msgspec.structs.replace(asked, nodes=64))
    assert many.verdict == "move"
    assert 22_000e6 < many.net.p50 < 28_000e6


def test_a_checkpoint_copied_while_training_goes_on_pays_for_itself() -> None:
    advice = advise(question(carry_bytes=2 * 10**12))
    assert advice.verdict == "move"
    assert "saves" in advice.because
    assert advice.may_act_alone


def test_the_same_place_is_never_an_offer() -> None:
    advice = advise(question(offers=(HERE,)))
    assert advice.verdict == "stay"
    assert advice.target is None
    assert advice.net.p50 == 0


def test_a_few_cents_are_not_worth_a_move() -> None:
    advice = advise(question(55.0, left_s=3600.0))
    assert advice.verdict == "stay"
    assert "not worth a move" in advice.because or "costs" in advice.because


def test_a_saving_that_is_a_gamble_is_not_taken() -> None:
    estimated = quote(42.0, accelerator="MI300X", accelerator_memory_gb=192)
    advice = advise(question(offers=(estimated,), left_s=200 * 3600.0))
    assert advice.verdict == "stay"
    assert "chance of only" in advice.because
    assert advice.net.p10 < 0 < advice.net.p50


def test_a_stale_price_is_advice_but_nothing_acts_on_it_alone() -> None:
    old = quote(20.0, priced_at=NOW - 30 * DAY, confidence="snapshot")
    advice = advise(question(offers=(old,)))
    assert advice.verdict == "move"
    assert not advice.may_act_alone
    assert advice.oldest_price_s == 30 * DAY
    assert any("snapshot of" in each for each in advice.assumptions)


def test_a_place_that_misses_the_deadline_is_named_and_left_out() -> None:
    slow = quote(5.0, accelerator="A100", accelerator_memory_gb=40)
    advice = advise(question(offers=(slow,), deadline_s=60 * 3600.0))
    assert advice.verdict == "stay"
    assert "miss the deadline" in advice.rejected[0].reason


def test_a_place_where_it_would_take_weeks_is_left_out_unless_that_is_allowed() -> None:
    single = quote(1.0, num_accelerators=1)
    advice = advise(question(offers=(single,)))
    assert advice.verdict == "stay"
    assert "allow that with most_slowdown" in advice.rejected[0].reason
    assert advise(question(offers=(single,), most_slowdown=20.0)).verdict == "move"


def test_a_deadline_that_is_missed_here_forces_a_dearer_move() -> None:
    faster = quote(150.0, accelerator="H100", num_accelerators=16)
    advice = advise(question(offers=(faster,), deadline_s=40 * 3600.0))
    assert advice.verdict == "move"
    assert advice.forced
    assert advice.margin_h is not None
    assert advice.margin_h[0] < 0 < advice.margin_h[1]


def test_reserved_capacity_that_idles_is_free_at_the_margin_and_says_so() -> None:
    reserved = Commitment(
        cloud="gcp", region="us-central1", instance_type="a3-highgpu-8g", nodes=2,
        micro_usd_per_h=40_000_000, until=NOW + 30 * DAY,
    )  # fmt: skip
    advice = advise(question(88.0, commitments=(reserved,)))
    assert advice.verdict == "move"
    assert advice.bill is not None
    assert any("paid for already" in item.source for item in advice.bill.items)


def test_leaving_reserved_capacity_saves_nothing_and_is_told() -> None:
    reserved = Commitment(
        cloud="aws", region="us-east-1", instance_type="p5.48xlarge", nodes=1, nodes_used=0,
        micro_usd_per_h=40_000_000, until=NOW + 30 * DAY,
    )  # fmt: skip
    advice = advise(question(10.0, commitments=(reserved,)))
    assert advice.verdict == "stay"
    assert any("strands a commitment of 40.00 USD/h" in each for each in advice.assumptions)


def test_spot_is_charged_for_its_restarts() -> None:
    calm = advise(question(offers=(quote(20.0, market="spot"),), spot_life_s=24 * 3600.0))
    rough = advise(question(offers=(quote(20.0, market="spot"),), spot_life_s=1800.0))
    assert rough.net.p50 < calm.net.p50
    assert calm.bill is not None
    assert any(item.label.startswith("restarts") for item in calm.bill.items)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"budget_micro_usd": 5_000_000, "spent_micro_usd": 6_000_000}, "raise it or stop"),
     ({"deadline_s": -7200.0}, "passed 2 h ago"), ({"left_s": 0.0}, "no training is left"),
     ({"nodes": 0}, "at least one node"), ({"left_s": float("nan")}, "give seconds"),
     ({"spot_life_s": 0.0}, "correct their life"), ({"carry_bytes": -1}, "transfer")],
)  # fmt: skip
def test_a_question_that_contradicts_itself_is_refused(
    change: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        advise(question(**change))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"until": NOW - 1}, "ended on"), ({"nodes_used": 3}, "nodes in use"),
     ({"micro_usd_per_h": -1}, "negative price")],
)  # fmt: skip
def test_a_commitment_that_cannot_be_is_refused(change: dict[str, object], says: str) -> None:
    plain = Commitment(
        cloud="aws", region="us-east-1", instance_type="p5.48xlarge", nodes=1,
        micro_usd_per_h=1, until=NOW + DAY,
    )  # fmt: skip
    with pytest.raises(UsageError, match=says):
        advise(question(commitments=(msgspec.structs.replace(plain, **change),)))


def test_contradictory_commitments_are_refused() -> None:
    one = Commitment(
        cloud="aws", region="us-east-1", instance_type="p5", nodes=1, micro_usd_per_h=1,
        until=NOW + DAY,
    )  # fmt: skip
    other = msgspec.structs.replace(one, micro_usd_per_h=2)
    with pytest.raises(UsageError, match="keep the right one"):
        advise(question(commitments=(one, other)))


def test_every_flip_really_flips_the_sign() -> None:
    advice = advise(question(carry_bytes=2 * 10**12))
    price = next(f for f in advice.flips_if if "node there costs more" in f.condition)
    dollars = float(price.condition.split("$")[1].split("/")[0].replace(",", ""))
    dearer = advise(question(dollars + 0.05, carry_bytes=2 * 10**12))
    cheaper = advise(question(dollars - 0.05, carry_bytes=2 * 10**12))
    assert dearer.net.p50 < 0 < cheaper.net.p50


QUESTIONS = st.builds(
    lambda usd_h, hours, gigabytes, egress, nodes, spot: question(
        offers=(quote(usd_h, market="spot" if spot else "on-demand"),), left_s=hours * 3600,
        carry_bytes=round(gigabytes * 1e9), egress=egress, nodes=nodes,
    ),
    st.floats(1, 120), st.floats(0.5, 900), st.floats(0, 4000), st.floats(0, 0.2),
    st.integers(1, 64), st.booleans(),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(QUESTIONS)
def test_a_bill_sums_exactly_and_is_what_the_move_saves(asked: Question) -> None:
    advice = advise(asked)
    assert advice.bill is not None
    assert sum(item.amount_micro_usd for item in advice.bill.items) == advice.bill.total_micro_usd
    assert advice.net.p50 == -advice.bill.total_micro_usd
    assert advice.net.p10 <= advice.net.p50 <= advice.net.p90
    assert 0 <= advice.chance <= 1


@settings(max_examples=60, deadline=None)
@given(QUESTIONS, st.floats(0.001, 0.3))
def test_dearer_egress_never_saves_more(asked: Question, more: float) -> None:
    tier = asked.links[THERE].egress[0]
    dearer = EgressTier(None, tier.micro_usd_per_gb + round(more * 1e6))
    changed = msgspec.structs.replace(asked, links={THERE: Link((dearer,), 625e6)})
    assert advise(changed).net.p50 <= advise(asked).net.p50


@settings(max_examples=60, deadline=None)
@given(QUESTIONS, st.floats(1, 500))
def test_where_moving_saves_it_saves_more_with_more_training_left(
    asked: Question, hours: float
) -> None:
    advice = advise(asked)
    if advice.verdict == "move":
        assert asked.left_s is not None
        longer = msgspec.structs.replace(asked, left_s=asked.left_s + hours * 3600)
        assert advise(longer).net.p50 >= advice.net.p50


@settings(max_examples=60, deadline=None)
@given(QUESTIONS)
def test_a_dominated_offer_never_changes_the_answer(asked: Question) -> None:
    first = asked.offers[0]
    worse = msgspec.structs.replace(
        first, micro_usd_per_h=first.micro_usd_per_h + 1_000_000, zone="us-central1-z"
    )
    both = advise(msgspec.structs.replace(asked, offers=(first, worse)))
    alone = advise(asked)
    assert (both.verdict, both.target, both.net) == (alone.verdict, alone.target, alone.net)


@settings(max_examples=60, deadline=None)
@given(QUESTIONS)
def test_who_has_just_moved_is_not_sent_back(asked: Question) -> None:
    advice = advise(asked)
    if advice.verdict == "move" and advice.target is not None:
        back = msgspec.structs.replace(
            asked, here=advice.target, offers=(asked.here,),
            links={"aws:us-east-1": asked.links[THERE]},
        )  # fmt: skip
        assert advise(back).verdict == "stay"


def test_every_offer_is_told_with_its_reason() -> None:
    offers = tuple(quote(20 + at / 10, zone=f"z{at}") for at in range(200))
    advice: Advice = advise(question(offers=offers))
    assert len(advice.options) == 200
    assert all(option.reason for option in advice.options)
