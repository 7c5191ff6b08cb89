"""Losses and gradient norms that are no numbers, or leap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloudshift_lab.health.finding import Evidence, Finding, Subject
from cloudshift_lab.health.windows import Floats, LossWindow


@dataclass(frozen=True)
class LossLimits:
    """When a value leaps: ``out_of`` newest steps, ``need`` of them above median + ``mads`` MAD.

    Args:
        history: Steps before the newest that say what is usual.
        least: Fewer of them say nothing.
        mads: Median absolute deviations above the median.
        least_share: A MAD counts as at least so large a share of the median, so that a flat curve
            does not turn every flicker into a leap.
    """

    history: int = 200
    least: int = 50
    mads: float = 6.0
    out_of: int = 5
    need: int = 3
    least_share: float = 0.002


def find_loss_anomalies(
    window: LossWindow, limits: LossLimits | None = None
) -> tuple[Finding, ...]:
    """What is wrong with the newest steps of a loss curve; of gradient norms likewise."""
    limits = limits or LossLimits()
    found = [_judge(window.first_step, window.loss, "loss", limits)]
    if window.grad_norm is not None:
        found.append(_judge(window.first_step, window.grad_norm, "gradient norm", limits))
    return tuple(each for each in found if each is not None)


def _judge(first_step: int, values: Floats, what: str, limits: LossLimits) -> Finding | None:
    if not len(values):
        return None
    newest = values[-limits.out_of :]
    broken = np.flatnonzero(~np.isfinite(newest))
    if len(broken):
        row = len(values) - len(newest) + int(broken[0])
        return _not_a_number(what, first_step + row, float(values[row]))
    past = values[-limits.history - limits.out_of : -limits.out_of]
    past = past[np.isfinite(past)]
    if len(past) < limits.least:
        return None
    median = float(np.median(past))
    mad = max(float(np.median(np.abs(past - median))), limits.least_share * abs(median), 1e-12)
    limit = median + limits.mads * mad
    high = np.flatnonzero(newest > limit)
    if len(high) < limits.need:
        return None
    step = first_step + len(values) - len(newest) + int(high[0])
    return _leap(what, step, float(newest[high].max()), limit, median)


def _not_a_number(what: str, step: int, value: float) -> Finding:
    return Finding(
        rule_id=f"loss.{'nan' if np.isnan(value) else 'inf'}", subject=Subject("run", "run"),
        severity="critical", evidence=(Evidence(what, str(value), at=step),), action="roll back",
        confidence=1.0, deterministic=False, at=step,
        words=f"The {what} is {value} at step {step}: nothing after it is worth keeping; go back "
        "to a checkpoint from before and look at the data, the learning rate and the precision.",
    )  # fmt: skip


def _leap(what: str, step: int, value: float, limit: float, median: float) -> Finding:
    return Finding(
        rule_id=f"loss.spike{'' if what == 'loss' else '.grad_norm'}",
        subject=Subject("run", "run"), severity="warning",
        evidence=(
            Evidence(what, round(value, 6), "", round(limit, 6), step),
            Evidence("its median before", round(median, 6)),
        ),
        action="look at the application", confidence=0.8, deterministic=False, at=step,
        words=f"The {what} leapt to {value:.4g} at step {step}, usual is {median:.4g}; if it does "
        "not come down, go back to a checkpoint from before and skip that data.",
    )  # fmt: skip
