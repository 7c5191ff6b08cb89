"""How long copying and the pause will take, from sizes and what was measured."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import format_bytes, format_duration

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


def estimate_pause_s(
    final_bytes: int, step_s: float, bytes_per_s: float | None = None, restore_s: float = 1.0
) -> Estimate:
    """Time in which nobody trains: finish the step, save and copy the last changes, restore.

    Args:
        final_bytes: Changed since the newest copy at the target, >= 0.
        step_s: Duration of a step, >= 0; the drain waits for the end of one.
        bytes_per_s: As for ``estimate_transfer_s``; the bytes go out and in, so they count twice.
        restore_s: Reading the state into a process that is ready and waiting, >= 0.

    Raises:
        UsageError: An argument is out of range.
    """
    if step_s < 0 or restore_s < 0:
        raise UsageError("a pause needs durations >= 0; mend the call")
    copy = estimate_transfer_s(2 * final_bytes, bytes_per_s)
    return Estimate(
        step_s + copy.seconds + restore_s,
        f"one step {format_duration(step_s)} + {copy.basis} + restore {format_duration(restore_s)}",
    )


def num_requests(num_bytes: int) -> int:
    """Objects that ``num_bytes`` of checkpoint make: packs, plus the few small records."""
    return 8 + -(-num_bytes // PART_BYTES)
