"""How often a run is saved: every so many steps, every so many seconds, or as Young/Daly say."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, format_duration
from cloudshift_lab.core.placement import Market, Placement

AUTO = "auto"
NODE_MTBF_H: dict[Market, float] = {"on-demand": 24 * 200.0, "reserved": 24 * 200.0, "spot": 24.0}
"""Hours between failures of one node, assumed until a run's own rate is known.

On-demand and reserved: InfiniteHBD's trace (SIGCOMM'25) of 400 eight-GPU nodes has one hardware
fault per node in 239 days; rounded down. Spot: one reclaim a day, since no provider promises more.
"""
JOB_MTBF_H = 24.0
"""Hours between ends of a job for its own reasons (an error, a full disk), of whatever size."""
FIRST_SAVE_S = 30.0
MIN_INTERVAL_S = 10.0
MAX_INTERVAL_S = HOUR_S
BUSY_SHARE = 0.5
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_STEPS = re.compile(r"[0-9]{1,9}")
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,17})?) ?([smh])")
_LONGEST_S = 1e9


@dataclass(frozen=True)
class EverySteps:
    """A save after each ``steps``-th step, decided by the ranks alone; ``steps`` >= 1."""

    steps: int

    def __str__(self) -> str:
        return str(self.steps)


@dataclass(frozen=True)
class EverySeconds:
    """A save each ``seconds`` of training, at the next common step; ``seconds`` > 0."""

    seconds: float

    def __str__(self) -> str:
        """Exact, and without an exponent, so that parsing it gives the same."""
        return f"{Decimal(repr(self.seconds)).normalize():f}s"


@dataclass(frozen=True)
class YoungDaly:
    """The interval that loses least time to saves and failures together, from measurements."""

    def __str__(self) -> str:
        return AUTO


SavePolicy = EverySteps | EverySeconds | YoungDaly


@dataclass(frozen=True)
class SaveCost:
    """What saves of this run have cost so far.

    Args:
        lost_s: Training time lost per save (stall and slower steps after it), seconds, >= 0.
        save_s: From the copy to the commit, seconds, >= 0.
        step_s: One step, seconds, >= 0.
    """

    lost_s: float
    save_s: float
    step_s: float


@dataclass(frozen=True)
class Interval:
    """How long to train between two saves, and why; ``why`` is for people."""

    seconds: float
    why: str


def parse_save_policy(text: str) -> SavePolicy:
    """Read ``50`` (steps), ``30s``, ``5m``, ``1h`` or ``auto``.

    Raises:
        UsageError: It is none of them.
    """
    word = text.strip().lower()
    if word == AUTO:
        return YoungDaly()
    if _STEPS.fullmatch(word) and int(word) > 0:
        return EverySteps(int(word))
    match = _TIME.fullmatch(word)
    if match is not None:
        seconds = float(match[1]) * _SECONDS[match[2]]
        if 1 <= seconds < _LONGEST_S:
            return EverySeconds(seconds)
    raise UsageError(
        f"'{text[:40]}' is no checkpoint interval; give steps (50), a time from a second to 30 "
        "years (30s, 5m, 1h) or auto"
    )


def fixed_steps(text: str) -> int | None:
    """Steps between saves where the policy is that; None where the agent decides by the clock."""
    policy = parse_save_policy(text)
    return policy.steps if isinstance(policy, EverySteps) else None


def young_daly_interval_s(save_s: float, mtbf_s: float) -> float:
    """Checkpoint interval that loses least time to saves and failures together.

    Args:
        save_s: Training time lost per save, seconds, > 0.
        mtbf_s: Mean time between failures of the whole job, seconds, > 0.

    Returns:
        Seconds of training between the end of a save and the beginning of the next.

    Raises:
        UsageError: An argument is out of range.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart
        dumps", equation 37; its first term is Young 1974.
    """
    if not (0 < save_s < math.inf and 0 < mtbf_s < math.inf):
        raise UsageError(
            f"a save of {save_s} s and failures every {mtbf_s} s have no best interval; "
            "give finite times above 0"
        )
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    share = save_s / (2 * mtbf_s)
    return math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(share) / 3 + share / 9) - save_s


def assumed_mtbf_s(placement: Placement) -> float:
    """Seconds between failures of a whole job, assumed from how many nodes of which kind it has."""
    per_h = placement.nodes / NODE_MTBF_H[placement.market] + 1 / JOB_MTBF_H
    return HOUR_S / per_h


def interval_of(policy: SavePolicy, cost: SaveCost | None, mtbf_s: float) -> Interval | None:
    """How long to train between two saves; None where steps are counted instead.

    Args:
        policy: What was asked for.
        cost: Measured; None before the first save, which is then made early to measure it.
        mtbf_s: Mean time between failures of the whole job, seconds.
    """
    if isinstance(policy, EverySteps):
        return None
    if isinstance(policy, EverySeconds):
        return Interval(policy.seconds, f"every {format_duration(policy.seconds)}")
    if cost is None:
        return Interval(FIRST_SAVE_S, "auto: the first save measures what one costs")
    return _best(cost, mtbf_s)


def describe(policy: SavePolicy, interval: Interval | None) -> str:
    """The policy in words, for a status line."""
    if isinstance(policy, EverySteps):
        return "every step" if policy.steps == 1 else f"every {policy.steps} steps"
    assert interval is not None, "a policy of time has an interval"
    return interval.why


def _best(cost: SaveCost, mtbf_s: float) -> Interval:
    """Young/Daly, held to what the saver can keep up with and to what makes sense."""
    lost_s = max(cost.lost_s, 1e-3)
    best_s = young_daly_interval_s(lost_s, mtbf_s)
    keeps_up_s = cost.save_s / BUSY_SHARE
    seconds = min(max(best_s, keeps_up_s, cost.step_s, MIN_INTERVAL_S), MAX_INTERVAL_S)
    failures = format_duration(mtbf_s if mtbf_s < HOUR_S else round(mtbf_s / HOUR_S) * HOUR_S)
    reason = f"a save costs {format_seconds(lost_s)}, failures assumed every {failures}"
    if keeps_up_s >= seconds > best_s:
        reason = f"a save takes {format_seconds(cost.save_s)}, and the saver may work half the time"
    return Interval(seconds, f"every {format_duration(seconds)} (Young/Daly: {reason})")


def format_seconds(seconds: float) -> str:
    """Seconds in two digits: ``3 ms``, ``0.25 s``, ``12 s``."""
    if seconds < 0.1:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
