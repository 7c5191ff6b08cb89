"""What it costs to carry bytes out of a cloud, by marginal monthly tiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import format_bytes, format_usd
from cloudshift_lab.core.placement import EgressTier

BYTES_PER_GB = 2**30  # the "GB" of the providers' price lists; AWS's first 10 TB are 10,240 of it


class Slice(msgspec.Struct, frozen=True):
    """The part of a transfer that falls into one tier."""

    num_bytes: int
    micro_usd_per_gb: int


def slices(tiers: Sequence[EgressTier], used_bytes: int, num_bytes: int) -> tuple[Slice, ...]:
    """Which bytes of a transfer fall into which tier; empty without tiers or without bytes.

    Args:
        tiers: In order of volume, the last one without end.
        used_bytes: Carried out already this month, >= 0.
        num_bytes: To be carried out now, >= 0.

    Raises:
        UsageError: Tiers out of order or with an end, or a negative number.
    """
    if used_bytes < 0 or num_bytes < 0:
        raise UsageError("egress is priced for byte counts >= 0; mend the call")
    end_bytes = used_bytes + num_bytes
    found = []
    for low, high, price in _spans(tiers):
        top = end_bytes if high is None else min(end_bytes, high)
        inside = top - max(used_bytes, low)
        if inside > 0:
            found.append(Slice(inside, price))
    return tuple(found)


def cost(tiers: Sequence[EgressTier], used_bytes: int, num_bytes: int) -> int:
    """Micro-dollars for carrying out ``num_bytes`` after ``used_bytes`` this month.

    Invariant: splitting a transfer changes nothing, to the micro-dollar: each part is the
    difference of two rounded totals since the start of the month.

    Raises:
        UsageError: As for ``slices``.
    """
    if used_bytes < 0 or num_bytes < 0:
        raise UsageError("egress is priced for byte counts >= 0; mend the call")
    return _since_month_start(tiers, used_bytes + num_bytes) - _since_month_start(tiers, used_bytes)


def explain(tiers: Sequence[EgressTier], used_bytes: int, num_bytes: int) -> str:
    """The arithmetic in words: ``61.2 MB x $0.09/GB (1 GB = 2^30 bytes)``."""
    parts = [
        f"{format_bytes(part.num_bytes)} x {format_usd(part.micro_usd_per_gb)}/GB"
        for part in slices(tiers, used_bytes, num_bytes)
    ]
    if not parts:
        return f"{format_bytes(num_bytes)}, no egress price configured" if num_bytes else "0 B"
    used = f", after {format_bytes(used_bytes)} this month" if used_bytes else ""
    return f"{' + '.join(parts)}{used} (1 GB = 2^30 bytes)"


def _since_month_start(tiers: Sequence[EgressTier], num_bytes: int) -> int:
    parts = slices(tiers, 0, num_bytes)
    byte_prices = sum(part.num_bytes * part.micro_usd_per_gb for part in parts)
    return (byte_prices + BYTES_PER_GB // 2) // BYTES_PER_GB


def _spans(tiers: Sequence[EgressTier]) -> Iterator[tuple[int, int | None, int]]:
    """``(from byte, to byte or None, price)`` of each tier, checked."""
    low = 0
    for position, tier in enumerate(tiers):
        is_last = position == len(tiers) - 1
        if (tier.up_to_gb is None) != is_last or tier.micro_usd_per_gb < 0:
            raise UsageError(
                "egress tiers need prices >= 0 and exactly the last one without up_to_gb; "
                "mend clouds.json"
            )
        high = None if tier.up_to_gb is None else round(tier.up_to_gb * BYTES_PER_GB)
        if high is not None and high <= low:
            raise UsageError("egress tiers must grow in up_to_gb; mend clouds.json")
        yield low, high, tier.micro_usd_per_gb
        low = high or low
