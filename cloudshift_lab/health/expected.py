"""Goodput to be expected of a run: the validated formula, fed with what it has shown so far."""

from __future__ import annotations

from dataclasses import dataclass

from cloudshift_lab.core.money import format_duration
from cloudshift_lab.health.course import Course
from cloudshift_lab.health.goodput import Goodput, GoodputFacts, forecast

ENOUGH_FAILURES = 3
"""Fewer say too little about how often a run fails."""
_DETECT_S = 10.0
_RESTART_S = 60.0
_SAVE_S = 1.0
_LEAST_S = 1e-3


@dataclass(frozen=True)
class Shown:
    """What a run has shown beside its course.

    Args:
        step_s: A step's median duration, seconds.
        save_s: Training time that one save takes; None: none was measured yet.
        interval_s: Training between two saves as it was; None: fewer than two were seen.
        assumed_mtbf_s: Mean time between failures as it is assumed for such machines.
    """

    step_s: float
    save_s: float | None
    interval_s: float | None
    assumed_mtbf_s: float


def expect(course: Course, shown: Shown) -> tuple[Goodput, tuple[str, ...]]:
    """The share of time that will train, in the long run, and what that is computed from."""
    mtbf_s, failures = _mtbf(course, shown)
    detect_s, detecting = _detect(course)
    restart_s, restarting = _restart(course)
    num, healed = len(course.failures), course.num_healed
    save_s = _SAVE_S if shown.save_s is None else max(shown.save_s, _LEAST_S)
    facts = GoodputFacts(
        mtbf_s=mtbf_s, save_s=save_s, detect_s=detect_s, restart_s=restart_s,
        interval_s=shown.interval_s or None, step_s=shown.step_s,
        jit_share=healed / num if num else 0.0,
    )  # fmt: skip
    found = forecast(facts)
    saving = (
        f"a save takes {_short(_SAVE_S)} of training (assumed)" if shown.save_s is None
        else f"a save takes {_short(shown.save_s)} of training"
    )  # fmt: skip
    every = "seen" if shown.interval_s else "best, by Daly"
    interval = f"one every {format_duration(found.interval_s)} ({every})"
    return found, (failures, detecting, restarting, f"{saving}, {interval}")


def _mtbf(course: Course, shown: Shown) -> tuple[float, str]:
    num = len(course.failures)
    trained_s = course.total_s("training") + course.total_s("lost work")
    if num >= ENOUGH_FAILURES and trained_s > 0:
        every_s = trained_s / num
        return every_s, f"a failure every {format_duration(every_s)} of training (measured, {num})"
    every_s = shown.assumed_mtbf_s
    return every_s, f"a failure every {format_duration(every_s)} (assumed; {num} so far)"


def _detect(course: Course) -> tuple[float, str]:
    if not course.failures:
        return _DETECT_S, f"noticed within {_short(_DETECT_S)} (what a hang takes; none so far)"
    seconds = sum(noticed for noticed, _ in course.failures) / len(course.failures)
    return seconds, f"noticed within {_short(seconds)} (measured)"


def _restart(course: Course) -> tuple[float, str]:
    back = [again for _, again in course.failures if again > 0]
    if back:
        seconds = sum(back) / len(back)
        return seconds, f"training again after {_short(seconds)} (measured)"
    started = [span.end_s - span.begin_s for span in course.spans if span.cause == "starting"]
    if started:
        seconds = sum(started) / len(started)
        return seconds, f"training again after {_short(seconds)} (what its start took)"
    return _RESTART_S, f"training again after {_short(_RESTART_S)} (assumed)"


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if 0 < seconds < 1 else format_duration(seconds)
