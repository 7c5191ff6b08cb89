import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import EgressTier
from cloudshift_lab.market.egress import BYTES_PER_GB, cost, explain, slices

AWS = (
    EgressTier(10 * 1024, 90_000),
    EgressTier(50 * 1024, 85_000),
    EgressTier(150 * 1024, 70_000),
    EgressTier(None, 50_000),
)
TIB = 1024 * BYTES_PER_GB


@st.composite
def tier_lists(draw):
    """Up to five tiers in eighths of a GB, so that a brute force can walk over them."""
    ends = sorted(draw(st.sets(st.integers(1, 80), max_size=4)))
    prices = draw(st.lists(st.integers(0, 200_000), min_size=len(ends) + 1, max_size=len(ends) + 1))
    return tuple(
        EgressTier(None if end is None else end / 8, price)
        for end, price in zip([*ends, None], prices, strict=True)
    )


@pytest.mark.parametrize(
    ("tib", "usd"),
    [
        (0, 0),
        (1, 92.16),
        (10, 921.60),
        (49, 4316.16),
        (60, 5120.00),
        (150, 11571.20),
        (151, 11622.40),
    ],
)
def test_aws_volumes_cost_what_the_published_tiers_say(tib, usd):
    assert cost(AWS, 0, tib * TIB) == round(usd * 1_000_000)


def test_ten_thousand_dollars_carry_128_tib_out_of_aws():
    assert 9_990_000_000 < cost(AWS, 0, 128 * TIB) < 10_000_000_000


@settings(deadline=None)
@given(tier_lists(), st.integers(0, 100), st.integers(0, 100))
def test_the_cost_is_the_sum_over_eighths_of_a_gb_each_at_its_own_price(tiers, used, extra):
    eighth = BYTES_PER_GB // 8
    prices = [
        next(t.micro_usd_per_gb for t in tiers if t.up_to_gb is None or position / 8 < t.up_to_gb)
        for position in range(used, used + extra)
    ]
    assert cost(tiers, used * eighth, extra * eighth) == pytest.approx(sum(prices) / 8, abs=1)


@settings(deadline=None)
@given(tier_lists(), *[st.integers(0, 20 * BYTES_PER_GB)] * 3)
def test_splitting_a_transfer_changes_nothing_to_the_micro_dollar(tiers, used, first, second):
    whole = cost(tiers, used, first + second)
    assert whole == cost(tiers, used, first) + cost(tiers, used + first, second)


@settings(deadline=None)
@given(tier_lists(), *[st.integers(0, 20 * BYTES_PER_GB)] * 3)
def test_more_bytes_never_cost_less(tiers, used, num_bytes, more):
    assert 0 <= cost(tiers, used, num_bytes) <= cost(tiers, used, num_bytes + more)


@settings(deadline=None)
@given(tier_lists(), *[st.integers(0, 20 * BYTES_PER_GB)] * 2)
def test_slices_hold_every_byte_once(tiers, used, num_bytes):
    assert sum(part.num_bytes for part in slices(tiers, used, num_bytes)) == num_bytes


@pytest.mark.parametrize(("num_bytes", "micro_usd"), [(2**29 - 1, 1), (2**29, 2), (2**30, 3)])
def test_fractions_of_a_micro_dollar_are_rounded_to_the_nearest(num_bytes, micro_usd):
    assert cost((EgressTier(None, 3),), 0, num_bytes) == micro_usd


def test_without_tiers_egress_is_free_and_says_that_no_price_is_known():
    assert cost((), 0, TIB) == 0
    assert "no egress price configured" in explain((), 0, TIB)


def test_the_words_name_each_tier_and_the_months_usage():
    words = explain(AWS, 9 * TIB, 2 * TIB)
    assert words == (
        "1.1 TB x $0.0900/GB + 1.1 TB x $0.0850/GB, after 9.9 TB this month (1 GB = 2^30 bytes)"
    )


@pytest.mark.parametrize(
    "tiers",
    [
        (EgressTier(10, 1),),
        (EgressTier(None, 1), EgressTier(None, 2)),
        (EgressTier(10, 1), EgressTier(5, 1), EgressTier(None, 1)),
        (EgressTier(None, -1),),
    ],
)
def test_tiers_that_make_no_sense_are_refused(tiers):
    with pytest.raises(UsageError, match=r"clouds\.json"):
        cost(tiers, 0, 1)


def test_negative_volumes_are_refused():
    with pytest.raises(UsageError, match=">= 0"):
        cost(AWS, -1, 1)
    with pytest.raises(UsageError, match=">= 0"):
        slices(AWS, 0, -1)
