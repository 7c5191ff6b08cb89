"""Egress is priced by where it leaves and where it goes, in tiers that add up."""

from __future__ import annotations

import pytest

from cloudshift_lab.feeds.egress_book import egress_tiers
from cloudshift_lab.market.egress import cost

TB = 2**40


def usd(source: str, target: str, num_bytes: int, used: int = 0) -> float:
    tiers, _ = egress_tiers(_place(source), _place(target))
    return cost(tiers, used, num_bytes) / 1e6


def _place(text: str) -> tuple[str, str]:
    cloud, _, region = text.partition(":")
    return cloud, region


@pytest.mark.parametrize(
    ("terabytes", "dollars"), [(10, 921.6), (49, 4316.16), (60, 5120.0), (500, 29_491.2)]
)
def test_leaving_aws_costs_what_its_tiers_say(terabytes: int, dollars: float) -> None:
    """10 TB x $0.09, then $0.085, $0.07 over 50 TB and $0.05 over 150 TB, of 1,024 GB each."""
    expected = usd("aws:us-east-1", "gcp:us-central1", terabytes * TB)
    assert expected == pytest.approx(dollars, rel=1e-6)


def test_what_was_carried_this_month_moves_the_tier() -> None:
    late = usd("aws:us-east-1", "gcp:us-central1", TB, used=20 * TB)
    assert late == pytest.approx(1024 * 0.085)


@pytest.mark.parametrize(
    ("source", "target", "per_gb"),
    [("aws:us-east-1", "aws:us-east-2", 0.01), ("aws:us-east-1", "aws:eu-west-1", 0.02),
     ("aws:sa-east-1", "aws:us-east-1", 0.138), ("gcp:us-central1", "gcp:us-east5", 0.02),
     ("gcp:us-central1", "gcp:us-central1", 0.0), ("runpod:US", "aws:us-east-1", 0.0)],
)  # fmt: skip
def test_pairs_have_their_own_price(source: str, target: str, per_gb: float) -> None:
    assert usd(source, target, 100 * 2**30) == pytest.approx(100 * per_gb)


def test_what_is_only_assumed_says_so_and_what_is_unknown_is_not_free() -> None:
    assert egress_tiers(("gcp", "us-central1"), ("gcp", "us-east5"))[1] == "assumed"
    assert egress_tiers(("vast", "x"), ("aws", "us-east-1")) == ((), "unknown")
    assert egress_tiers(("azure", "eastus"), ("azure", "westus3")) == ((), "unknown")
