"""A price says how old it is, and one that cannot be right is never taken."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.market.quotes import (
    Confidence,
    Quote,
    age_of,
    badge,
    checked,
    may_move_alone,
    offer_of,
)

NOW = 1_785_000_000.0
HOUR, DAY = 3600.0, 86_400.0


def quote(**more: object) -> Quote:
    plain = Quote(
        cloud="gcp", region="us-central1", instance_type="a3-highgpu-8g", accelerator="H100",
        num_accelerators=8, micro_usd_per_h=50_000_000, priced_at=NOW, seen_at=NOW,
        source="a list", confidence="listed",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **more)


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(0, "live"), (2 * HOUR, "fresh"), (2 * DAY, "ageing"), (8 * DAY, "stale"),
     (-60, "live"), (-HOUR, "from the future")],
)  # fmt: skip
def test_a_price_ages(seconds: float, age: str) -> None:
    assert age_of(quote(priced_at=NOW - seconds), NOW) == age


@pytest.mark.parametrize(
    ("confidence", "seconds", "may"),
    [("live", 0, True), ("listed", 20 * HOUR, True), ("listed", 25 * HOUR, False),
     ("snapshot", 0, False), ("estimated", 0, False), ("live", -HOUR, False),
     ("simulated", 90 * DAY, True)],
)  # fmt: skip
def test_only_fresh_prices_of_a_provider_move_a_run_by_themselves(
    confidence: Confidence, seconds: float, may: bool
) -> None:
    assert may_move_alone(quote(confidence=confidence, priced_at=NOW - seconds), NOW) is may


@pytest.mark.parametrize(
    ("change", "says"),
    [({"micro_usd_per_h": 0}, "0 USD"), ({"micro_usd_per_h": -5}, "USD an hour"),
     ({"priced_at": NOW + DAY}, "ahead of this clock"), ({"priced_at": 0.0}, "when its price"),
     ({"priced_at": float("nan")}, "when its price"), ({"region": ""}, "which machine where")],
)  # fmt: skip
def test_what_cannot_be_a_price_is_left_out_and_named(change: dict[str, object], says: str) -> None:
    good, bad = checked([quote(), quote(**change)], NOW)
    assert good == [quote()]
    assert says in bad[0].reason


def test_the_cheapest_accelerator_comes_first() -> None:
    one = quote(micro_usd_per_h=7_000_000, num_accelerators=1)
    assert checked([one, quote()], NOW)[0] == [quote(), one]


def test_a_person_sees_age_and_trust() -> None:
    assert badge(quote(), NOW) == "listed, now"
    assert badge(quote(priced_at=NOW - 2 * HOUR), NOW) == "listed, 2 h ago"
    assert badge(quote(confidence="snapshot", priced_at=NOW - 30 * DAY), NOW).endswith("stale")
    assert badge(quote(confidence="simulated"), NOW) == "simulated"


def test_an_offer_keeps_date_source_and_simulation() -> None:
    offer = offer_of(quote(confidence="simulated"))
    assert offer.simulated
    assert offer.price_micro_usd_per_h == 50_000_000
    assert offer.as_of == "2026-07-25"
    assert "a list" in offer.source
