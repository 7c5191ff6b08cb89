"""How long copying will take, from sizes and what was measured."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import format_bytes

ASSUMED_BYTES_PER_S = 50e6
ASSUMED_REQUEST_S = 0.1
PART_BYTES = 64_000_000


class Estimate(msgspec.Struct, frozen=True):
    """A duration and, in words, how it was reached."""

    seconds: float
    basis: str


def estimate_transfer_s(num_bytes: int, bytes_per_s: float | None = None) -> Estimate:
    """Time to copy ``num_bytes`` between two stores.

    Args:
        num_bytes: To be copied, >= 0.
        bytes_per_s: Measured on this pair of stores, > 0; None when nothing was measured.

    Raises:
        UsageError: An argument is out of range.
    """
    if num_bytes < 0 or (bytes_per_s is not None and bytes_per_s <= 0):
        raise UsageError("a transfer needs bytes >= 0 and a speed > 0; mend the call")
    speed = bytes_per_s or ASSUMED_BYTES_PER_S
    seconds = ASSUMED_REQUEST_S + num_bytes / speed
    how = "measured" if bytes_per_s else "assumed, nothing measured yet"
    return Estimate(seconds, f"{format_bytes(num_bytes)} at {format_bytes(round(speed))}/s ({how})")


def num_requests(num_bytes: int) -> int:
    """Objects that ``num_bytes`` of checkpoint make: packs, plus the few small records."""
    return 8 + -(-num_bytes // PART_BYTES)
