"""Prices as they were found: each with its time, its source and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from cloudshift_lab.core.money import format_duration
from cloudshift_lab.core.placement import Market, Offer

Confidence = Literal["live", "listed", "snapshot", "estimated", "simulated"]
Age = Literal["live", "fresh", "ageing", "stale", "from the future"]
LIVE_S, FRESH_S, STALE_S = 3600.0, 86_400.0, 7 * 86_400.0
CLOCKS_DIFFER_S = 300.0


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What one node costs somewhere, and how that is known.

    Args:
        cloud: Provider, as in ``clouds.json`` or in a price list: ``aws``, ``gcp``, ``azure``.
        zone: Empty: the whole region.
        accelerator: As the provider calls it, without its memory: ``H100``; empty: none.
        num_accelerators: Of one node.
        micro_usd_per_h: Of one whole node.
        priced_at: When the price was true, unix seconds.
        seen_at: When it was read, unix seconds.
        source: Where it was read, for a person.
        confidence: ``live``: asked for just now; ``listed``: of a published list; ``snapshot``: of
            the table that comes with the package; ``estimated``; ``simulated``.
    """

    cloud: str
    region: str
    instance_type: str
    micro_usd_per_h: int
    priced_at: float
    seen_at: float
    source: str
    confidence: Confidence
    market: Market = "on-demand"
    zone: str = ""
    accelerator: str = ""
    num_accelerators: int = 0
    accelerator_memory_gb: float = 0.0
    vcpus: int = 0
    memory_gb: float = 0.0

    @property
    def place(self) -> str:
        """``gcp:us-central1`` or, where a zone is known, ``gcp:us-central1-a``."""
        return f"{self.cloud}:{self.zone or self.region}"


class Rejected(msgspec.Struct, frozen=True):
    """A price that was not taken, and why."""

    what: str
    reason: str


def age_of(quote: Quote, now: float) -> Age:
    """How old a price is, in the words that are shown beside it."""
    seconds = now - quote.priced_at
    if seconds < -CLOCKS_DIFFER_S:
        return "from the future"
    if seconds < LIVE_S:
        return "live"
    if seconds < FRESH_S:
        return "fresh"
    return "ageing" if seconds < STALE_S else "stale"


def may_move_alone(quote: Quote, now: float) -> bool:
    """Whether a move that nobody looks at may rest on this price.

    Only one of the last day that was read from its provider; never the snapshot, an estimate, or
    a clock that is ahead of ours. A simulated price may move a simulated run.
    """
    if quote.confidence == "simulated":
        return True
    return quote.confidence in ("live", "listed") and age_of(quote, now) in ("live", "fresh")


def badge(quote: Quote, now: float) -> str:
    """Age and trust in a few words: ``snapshot of 2026-07-30, stale``."""
    if quote.confidence == "simulated":
        return "simulated"
    age = age_of(quote, now)
    if age == "live":
        return f"{quote.confidence}, now"
    if age == "fresh":
        return f"{quote.confidence}, {format_duration(now - quote.priced_at)} ago"
    return f"{quote.confidence} of {date_of(quote.priced_at)}, {age}"


def date_of(at: float) -> str:
    """A UTC day, ``2026-07-30``."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def offer_of(quote: Quote) -> Offer:
    """The same price as an offer for a bill."""
    return Offer(
        cloud=quote.cloud, region=quote.region, instance_type=quote.instance_type,
        price_micro_usd_per_h=quote.micro_usd_per_h, market=quote.market,
        source=f"{quote.source} ({quote.confidence})", as_of=date_of(quote.priced_at),
        simulated=quote.confidence == "simulated",
        hardware=f"{quote.num_accelerators}x{quote.accelerator}" if quote.accelerator else "",
    )  # fmt: skip


def checked(quotes: Iterable[Quote], now: float) -> tuple[list[Quote], list[Rejected]]:
    """The prices that can be used, cheapest accelerator first, and the others with the reason.

    Nothing is ever taken for free by mistake: a price that is missing, zero or negative, and one
    from the future, is left out and named.
    """
    good, bad = [], []
    for quote in quotes:
        reason = _objection(quote, now)
        if reason:
            bad.append(Rejected(f"{quote.place} {quote.instance_type} {quote.market}", reason))
        else:
            good.append(quote)
    return sorted(good, key=_each), bad


def _each(quote: Quote) -> tuple[float, str, str]:
    each = quote.micro_usd_per_h / max(1, quote.num_accelerators)
    return each, quote.place, quote.instance_type


def _objection(quote: Quote, now: float) -> str:
    if quote.micro_usd_per_h <= 0:
        return f"its price is {quote.micro_usd_per_h / 1e6:g} USD an hour, which no offer is"
    if not (math.isfinite(quote.priced_at) and quote.priced_at > 0):
        return "it does not say when its price was true"
    if age_of(quote, now) == "from the future":
        ahead = format_duration(quote.priced_at - now)
        return f"its price is dated {ahead} ahead of this clock; check both clocks"
    if not (quote.cloud and quote.region and quote.instance_type):
        return "it does not say which machine where"
    return ""
