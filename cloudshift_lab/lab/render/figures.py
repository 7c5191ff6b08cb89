"""Small figures in text and SVG: sparklines, ages, clock times, rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.lab.render.markup import Markup, tag

BARS = "▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 160, 28


def finite(values: Sequence[float]) -> list[float]:
    """The values that can be drawn."""
    return [value for value in values if math.isfinite(value)]


def sparkline_text(values: Sequence[float], width: int = 24) -> str:
    """Bars from low to high; an empty string when there is nothing to draw."""
    drawn = _thin(finite(values), width)
    if not drawn:
        return ""
    low, high = min(drawn), max(drawn)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in drawn)


def sparkline_svg(values: Sequence[float], label: str) -> Markup | None:
    """An inline curve that takes the colours of the page."""
    drawn = _thin(finite(values), WIDTH // 2)
    if len(drawn) < 2:
        return None
    low, high = min(drawn), max(drawn)
    span = (high - low) or 1.0
    step = (WIDTH - 4) / (len(drawn) - 1)
    points = " ".join(
        f"{2 + index * step:.1f},{2 + (high - value) / span * (HEIGHT - 4):.1f}"
        for index, value in enumerate(drawn)
    )
    line = tag("polyline", points=points, fill="none", stroke_width="1.5",
               style="stroke:var(--jp-brand-color1,#1976d2)")  # fmt: skip
    return tag("svg", line, width=str(WIDTH), height=str(HEIGHT), role="img", aria_label=label,
               viewBox=f"0 0 {WIDTH} {HEIGHT}", style="vertical-align:middle")  # fmt: skip


def _thin(values: list[float], most: int) -> list[float]:
    if len(values) <= most:
        return values
    return [values[index * (len(values) - 1) // (most - 1)] for index in range(most)]


def clock(at: float) -> str:
    """Time of day as people write it: ``12:05:01 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def age(at: float | None, now: float) -> str:
    """How old something is: ``3.2 s old``; ``none yet`` when there is nothing."""
    if at is None:
        return "none yet"
    return f"{format_duration(max(0.0, now - at))} old"


def ago(at: float, now: float) -> str:
    """How long ago something was: ``3 min 5 s ago``."""
    return f"{format_duration(max(0.0, now - at))} ago"


def rate(price_micro_usd_per_h: int) -> str:
    """A price per hour."""
    return f"{format_usd(price_micro_usd_per_h)}/h"


def number(value: float | None, digits: int) -> str:
    """A number with thousands separators, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"
