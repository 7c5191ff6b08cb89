"""How much of the paid time trains: forecast from rates, or counted from what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.save_policy import young_daly_interval_s

Cause = Literal[
    "training", "saving", "lost work", "detecting", "restarting", "saving after a failure",
    "planned moves", "waiting for nodes", "slow ranks", "starting", "idle",
]  # fmt: skip
UNPLANNED: frozenset[Cause] = frozenset(
    {"lost work", "detecting", "restarting", "saving after a failure"}
)


@dataclass(frozen=True, kw_only=True)
class GoodputFacts:
    """Rates and durations of a run, seconds.

    Args:
        mtbf_s: Mean time between failures of the whole run while it trains, > 0.
        interval_s: Training between two saves, > 0; None: Daly's optimum.
        save_s: Training time lost per save, > 0.
        detect_s: From a failure to its detection.
        restart_s: From detection to training again.
        step_s: One step.
        jit_share: Failures whose last finished step the survivors save just in time, 0 to 1.
        jit_s: How long such a save takes.
        recall: Failures that are predicted and moved away from, 0 to 1.
        precision: Predictions that come true, above 0 if ``recall`` is.
        move_s: Pause of such a move.
    """

    mtbf_s: float
    save_s: float
    detect_s: float
    restart_s: float
    interval_s: float | None = None
    step_s: float = 1.0
    jit_share: float = 0.0
    jit_s: float = 0.0
    recall: float = 0.0
    precision: float = 1.0
    move_s: float = 0.0


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """A share of time, and where the rest goes.

    Args:
        share: Time that trains and is kept, of all time, 0 to 1.
        by_cause: Share of all time per cause; all of them add up to 1.
        unplanned_s: Down and lost time per failure, seconds.
        interval_s: Training between two saves.
    """

    share: float
    by_cause: dict[str, float]
    unplanned_s: float
    interval_s: float

    @property
    def words(self) -> str:
        """For people: the share, and what takes most of the rest."""
        rest = sorted(
            ((share, cause) for cause, share in self.by_cause.items()
             if cause != "training" and share > 0),
            reverse=True,
        )  # fmt: skip
        told = ", ".join(f"{cause} {share:.1%}" for share, cause in rest[:3])
        return f"{self.share:.1%} of the time trains" + (f"; {told}" if told else "")


def forecast(facts: GoodputFacts) -> Goodput:
    """What to expect, in the long run.

    Failures come at random at a constant rate. A failure loses what was done since the last save,
    half a step where survivors save just in time, and nothing where it was predicted.

    Raises:
        UsageError: A figure is out of range.

    Source: our model; a Monte-Carlo simulation of the same assumptions agrees within 0.002
        (tests/sim/health). Interval: Daly 2006.
    """
    _check(facts)
    interval_s = facts.interval_s or young_daly_interval_s(facts.save_s, facts.mtbf_s)
    cycle_s, mtbf_s = interval_s + facts.save_s, facts.mtbf_s
    met = 1 - facts.recall
    since_save_s = mtbf_s - cycle_s / math.expm1(cycle_s / mtbf_s)
    lost_s = met * ((1 - facts.jit_share) * since_save_s + facts.jit_share * facts.step_s / 2)
    detect_s, restart_s = met * facts.detect_s, met * facts.restart_s
    jit_s = met * facts.jit_share * facts.jit_s
    planned_s = facts.recall * facts.move_s / facts.precision if facts.recall else 0.0
    whole_s = mtbf_s + detect_s + restart_s + jit_s + planned_s
    useful_s = max(0.0, mtbf_s * interval_s / cycle_s - lost_s)
    parts: dict[str, float] = {
        "training": useful_s, "saving": mtbf_s * facts.save_s / cycle_s, "lost work": lost_s,
        "detecting": detect_s, "restarting": restart_s, "saving after a failure": jit_s,
        "planned moves": planned_s,
    }  # fmt: skip
    return Goodput(
        share=useful_s / whole_s, by_cause={cause: part / whole_s for cause, part in parts.items()},
        unplanned_s=lost_s + detect_s + restart_s + jit_s, interval_s=interval_s,
    )  # fmt: skip


class Span(msgspec.Struct, frozen=True):
    """Time of a run that went into one thing, seconds of any one clock."""

    cause: Cause
    begin_s: float
    end_s: float


def measured(spans: Sequence[Span], *, num_failures: int, interval_s: float = 0.0) -> Goodput:
    """The same breakdown from what happened; time between spans is idle.

    Args:
        spans: In order and not overlapping.
        num_failures: How many failures are in them.
        interval_s: Training between two saves, as it was set; 0: not known.

    Raises:
        UsageError: They overlap, run backwards, or there is none.
    """
    if not spans:
        raise UsageError("there is nothing to count yet; ask again when the run has trained")
    totals: dict[str, float] = {}
    until_s = spans[0].begin_s
    for span in spans:
        if span.begin_s < until_s - 1e-6 or span.end_s < span.begin_s:
            raise UsageError(
                f"the time from {span.begin_s} to {span.end_s} s ({span.cause}) overlaps what is "
                "before it; give spans in order"
            )
        _add(totals, "idle", span.begin_s - until_s)
        _add(totals, span.cause, span.end_s - span.begin_s)
        until_s = span.end_s
    whole_s = until_s - spans[0].begin_s
    unplanned_s = sum(totals.get(cause, 0.0) for cause in UNPLANNED)
    return Goodput(
        share=_share(totals.get("training", 0.0), whole_s),
        by_cause={cause: _share(total, whole_s) for cause, total in totals.items()},
        unplanned_s=unplanned_s / num_failures if num_failures else 0.0, interval_s=interval_s,
    )  # fmt: skip


def saved_by(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Per cause, how much of the time is no longer lost to it (negative: more is)."""
    causes = [cause for cause in before if cause != "training"]
    return {cause: before[cause] - after.get(cause, 0.0) for cause in causes}


def _share(part_s: float, whole_s: float) -> float:
    return part_s / whole_s if whole_s > 0 else 0.0


def _add(totals: dict[str, float], cause: str, seconds: float) -> None:
    if seconds > 0:
        totals[cause] = totals.get(cause, 0.0) + seconds


def _check(facts: GoodputFacts) -> None:
    shares = {"jit_share": facts.jit_share, "recall": facts.recall, "precision": facts.precision}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; give a share from 0 to 1")
    if facts.recall and not facts.precision:
        raise UsageError("predictions that never come true cannot have a recall; give a precision")
    if facts.mtbf_s <= 0 or facts.save_s <= 0 or (facts.interval_s or 1.0) <= 0:
        raise UsageError("mtbf_s, save_s and interval_s have to be above 0; give seconds")
    durations = (facts.detect_s, facts.restart_s, facts.step_s, facts.jit_s, facts.move_s)
    if min(durations) < 0:
        raise UsageError("no duration can be below 0; give seconds")
