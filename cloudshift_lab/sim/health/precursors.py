"""How many failures of simulated GPUs are announced in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from cloudshift_lab.health.precursor import PrecursorLimits, first_precursors
from cloudshift_lab.sim.bench.rows import Row, at_least, median, row
from cloudshift_lab.sim.health.data import MINUTE_S, LabelledGpu, labelled_gpus
from cloudshift_lab.sim.health.score import FOLDS, Counts, folds, spread, wilson

LEAD_MIN = 5.0
SUDDEN = "sudden"
GRID_C = (2.5, 3.0, 3.5)
"""Rises of the temperature that cross-validation chooses from."""
_CHUNK = 16


class GpuOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was said about one GPU.

    Args:
        gpu: Its name.
        kind: How it fails; ``none``: it does not.
        lookalike: What looks like a sign on it and is none.
        alarm: Minute of the first alarm; None: there was none.
        rule_id: Of that alarm.
        lead_min: Minutes from the alarm to the failure; None without one of them.
        verdict: ``right``: in time, and not before there was anything to see; ``late``: less than
            five minutes ahead; ``wrong``; ``missed``; ``quiet``: rightly.
    """

    gpu: str
    kind: str
    lookalike: str
    alarm: float | None
    rule_id: str
    lead_min: float | None
    verdict: str


def judge_gpu(gpu: LabelledGpu, rise_c: float | None = None) -> GpuOutcome:
    """Let the rules see one GPU's telemetry from its first row to its last."""
    limits = PrecursorLimits()
    if rise_c is not None:
        limits = replace(limits, climb=replace(limits.climb, rise_c=rise_c))
    found = first_precursors(gpu.window, limits)
    alarm = found[0].at / MINUTE_S if found else None
    lead = None if alarm is None or gpu.fails is None else gpu.fails - alarm
    return GpuOutcome(
        gpu=gpu.window.gpu, kind=gpu.kind, lookalike=gpu.lookalike, alarm=alarm,
        rule_id=found[0].rule_id if found else "", lead_min=lead,
        verdict=_verdict(gpu, alarm, lead),
    )  # fmt: skip


def _verdict(gpu: LabelledGpu, alarm: float | None, lead: float | None) -> str:
    if alarm is None:
        return "quiet" if gpu.fails is None else "missed"
    has_sign = gpu.fails is not None and gpu.kind != SUDDEN and gpu.onset is not None
    if not has_sign or lead is None or gpu.onset is None or alarm < gpu.onset:
        return "wrong"
    return "right" if lead >= LEAD_MIN else "late"


def evaluate(folder: Path, pool: Executor) -> tuple[tuple[Row, ...], tuple[GpuOutcome, ...]]:
    """Rows for the report, and what was said about each GPU."""
    gpus = list(labelled_gpus(folder))
    by_rise = {
        rise_c: list(pool.map(partial(judge_gpu, rise_c=rise_c), gpus, chunksize=_CHUNK))
        for rise_c in GRID_C
    }
    outcomes = by_rise[PrecursorLimits().climb.rise_c]
    return _rows(outcomes, by_rise), tuple(outcomes)


def total(outcomes: Sequence[GpuOutcome]) -> Counts:
    """All GPUs; an alarm that came late counts as missed and not as wrong."""
    times = Counter(each.verdict for each in outcomes)
    fails = sum(each.kind != "none" for each in outcomes)
    return Counts(times["right"], times["wrong"], fails - times["right"])


def _rows(
    outcomes: Sequence[GpuOutcome], by_rise: Mapping[float, Sequence[GpuOutcome]]
) -> tuple[Row, ...]:
    counts = total(outcomes)
    right = [each for each in outcomes if each.verdict == "right"]
    leads = [each.lead_min for each in right if each.lead_min is not None]
    low, high = wilson(counts.right, counts.right + counts.wrong)
    fails = counts.right + counts.missed
    sudden = sum(each.kind == SUDDEN for each in outcomes)
    wrong = [f"{each.gpu} {each.lookalike or each.kind} {each.rule_id}" for each in outcomes
             if each.verdict == "wrong"]  # fmt: skip
    held, chosen = _cross_validated(by_rise)
    return (
        row("precursors: precision", counts.precision, "share", goal=at_least(0.95),
            note=f"SIMULATED telemetry; {counts.right} right, {counts.wrong} wrong "
            f"({', '.join(wrong[:8]) or 'none'}); 95 % interval {low:.2f} to {high:.2f}"),
        row(f"precursors: recall, {LEAD_MIN:g} min ahead", counts.recall, "share",
            goal=at_least(0.5),
            note=f"{counts.right} of {fails} failures; {sudden} of them are sudden by "
            f"construction, so at most {(fails - sudden) / max(1, fails):.2f}; "
            f"{_by_kind(outcomes)}"),
        row("precursors: lead", median(leads), "min", note="median of those in time"),
        row("precursors, cross-validated: precision", held.precision, "share",
            note=f"5 folds over GPUs; rise of the temperature chosen from "
            f"{', '.join(f'{each:g}' for each in by_rise)} C on the others: {spread(chosen)}"),
        row("precursors, cross-validated: recall", held.recall, "share"),
    )  # fmt: skip


def _by_kind(outcomes: Sequence[GpuOutcome]) -> str:
    there = Counter(each.kind for each in outcomes if each.kind not in ("none", SUDDEN))
    found = Counter(each.kind for each in outcomes if each.verdict == "right")
    return ", ".join(f"{kind} {found[kind]} of {num}" for kind, num in sorted(there.items()))


def _cross_validated(by_rise: Mapping[float, Sequence[GpuOutcome]]) -> tuple[Counts, list[float]]:
    num = len(next(iter(by_rise.values())))
    fold = folds(num)
    held, chosen = Counts(), []
    for part in range(FOLDS):
        seen = [index for index in range(num) if fold[index] != part]
        best = max(by_rise, key=lambda rise: total([by_rise[rise][index] for index in seen]).f1)
        chosen.append(best)
        held += total([by_rise[best][index] for index in range(num) if fold[index] == part])
    return held, chosen
