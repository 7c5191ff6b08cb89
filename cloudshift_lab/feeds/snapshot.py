"""The table in the package: list prices of one day, for work without a network.

Facts, each with the day it was true: AWS on demand in one region, Azure on demand in four, GCP on
demand and spot in seven. Old by construction: it is shown with its date, and nothing moves by
itself because of it.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from importlib.resources import files

from cloudshift_lab.core.placement import Market
from cloudshift_lab.core.world import World
from cloudshift_lab.feeds.feed import Query
from cloudshift_lab.feeds.machines import MACHINES
from cloudshift_lab.market.quotes import Quote

SOURCES = {
    "aws": "AWS price list as generated into karpenter-provider-aws",
    "azure": "Azure price list as generated into karpenter-provider-azure",
    "gcp": "GCP price list as read by google-cloud-pricing-cost-calculator",
}
_MARKETS: dict[str, Market] = {"spot": "spot", "on-demand": "on-demand"}


class Snapshot:
    """Prices that came with the package."""

    name = "snapshot"

    def fetch(self, query: Query, world: World) -> list[Quote]:  # noqa: ARG002 - a PriceFeed
        """What the table has; never asks anybody."""
        text = files("cloudshift_lab.feeds").joinpath("snapshot.csv").read_text(encoding="utf-8")
        quotes = (_quote(row) for row in csv.DictReader(text.splitlines()))
        return [quote for quote in quotes if query.wants(quote)]


def day(text: str) -> float:
    """The beginning of a UTC day, ``2026-07-30``, unix seconds."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _quote(row: dict[str, str]) -> Quote:
    machine = MACHINES[row["cloud"], row["instance_type"]]
    priced_at = day(row["priced_on"])
    return machine.quote(
        region=row["region"], micro_usd_per_h=round(float(row["usd_h"]) * 1e6),
        market=_MARKETS[row["market"]], priced_at=priced_at, seen_at=priced_at,
        source=SOURCES[row["cloud"]], confidence="snapshot",
    )  # fmt: skip
