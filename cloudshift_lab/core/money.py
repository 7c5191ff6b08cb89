"""Money as integer micro-dollars, so that the lines of a bill sum exactly."""

from __future__ import annotations

MICRO = 1_000_000
HOUR_S = 3600.0


def to_micro_usd(usd: float) -> int:
    """Round dollars to the nearest micro-dollar."""
    return round(usd * MICRO)


def format_usd(micro_usd: int) -> str:
    """Show an amount with as many digits as it deserves: ``$12.40``, ``$0.0031``, ``-$2.00``."""
    sign = "-" if micro_usd < 0 else ""
    usd = abs(micro_usd) / MICRO
    if usd == 0 or usd >= 0.1:
        return f"{sign}${usd:,.2f}"
    if usd >= 0.0001:
        return f"{sign}${usd:.4f}"
    return f"{sign}${usd:.6f}"


def format_bytes(num_bytes: int) -> str:
    """Show a byte count in decimal units: ``61.2 MB``."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.95 or unit == "TB":  # what would be shown as 1000.0 is the next unit
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """Show a duration as people say it: ``0.8 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
