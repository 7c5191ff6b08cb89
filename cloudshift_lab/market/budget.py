"""How a run stands with its budget: when to raise an alarm, and when to save and stop."""

from __future__ import annotations

from collections.abc import Collection

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, format_duration, format_usd

LEVELS = (50, 80, 100)
"""Percent of a budget at which somebody is told."""
_MOST_RESERVED = 0.1
_LEAST_SAVE_S = 1.0


def check_budget(budget_micro_usd: int, spent_micro_usd: int) -> None:
    """Hold a budget to what can be kept.

    Raises:
        UsageError: It is not above 0, or that much is spent already.
    """
    if budget_micro_usd <= 0:
        raise UsageError("a budget has to be above $0; to end a run, stop it")
    if budget_micro_usd <= spent_micro_usd:
        raise UsageError(
            f"{format_usd(spent_micro_usd)} is spent already, so a budget of "
            f"{format_usd(budget_micro_usd)} cannot be kept; give more than that, or stop the run"
        )


def reserve_micro_usd(
    budget_micro_usd: int, micro_usd_per_h: int, save_s: float | None = None
) -> int:
    """What is left over for the last save, so that a run ends within its budget.

    Args:
        budget_micro_usd: Of which at most a tenth is kept back.
        micro_usd_per_h: What the run costs.
        save_s: How long a save takes until it is committed; None: not measured.
    """
    needed_s = max(_LEAST_SAVE_S, save_s or 0.0)
    needed = round(micro_usd_per_h * needed_s / HOUR_S)
    return min(needed, round(_MOST_RESERVED * budget_micro_usd))


def levels_reached(budget_micro_usd: int, spent_micro_usd: int) -> tuple[int, ...]:
    """The levels that a spending has reached, in percent."""
    return tuple(level for level in LEVELS if 100 * spent_micro_usd >= level * budget_micro_usd)


def new_levels(
    budget_micro_usd: int, spent_micro_usd: int, told: Collection[int]
) -> tuple[int, ...]:
    """Those that nobody has been told of; each is told once."""
    return tuple(
        level for level in levels_reached(budget_micro_usd, spent_micro_usd) if level not in told
    )


def is_used_up(budget_micro_usd: int, spent_micro_usd: int, reserve: int) -> bool:
    """Whether the run has to save and stop now."""
    return spent_micro_usd + reserve >= budget_micro_usd


def lasts_s(
    budget_micro_usd: int, spent_micro_usd: int, micro_usd_per_h: int, reserve: int
) -> float | None:
    """Seconds until the run has to stop, at its present price; None: it costs nothing now."""
    if micro_usd_per_h <= 0:
        return None
    left = budget_micro_usd - reserve - spent_micro_usd
    return max(0.0, left * HOUR_S / micro_usd_per_h)


def budget_words(budget_micro_usd: int, spent_micro_usd: int, left_s: float | None) -> str:
    """The standing as a sentence: ``$4.10 of $5.00 is spent (82 %); the rest lasts 15 min``."""
    share = spent_micro_usd / budget_micro_usd
    told = (
        f"{format_usd(spent_micro_usd)} of the budget of {format_usd(budget_micro_usd)} is spent "
        f"({share:.0%})"
    )
    if left_s is None:
        return told
    if not left_s:
        return f"{told}; the run saves and stops"
    return f"{told}; at the present price it is saved and stopped in {format_duration(left_s)}"
