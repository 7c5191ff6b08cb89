"""How well stragglers are found in simulated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from cloudshift_lab.health.scan import ScanLimits
from cloudshift_lab.health.straggler import StragglerLimits, find_stragglers
from cloudshift_lab.sim.bench.rows import Row, at_least, at_most, median, percentile, row
from cloudshift_lab.sim.health.data import LabelledRun, labelled_runs
from cloudshift_lab.sim.health.score import FOLDS, Counts, folds, spread, wilson

GRID = (5.0, 5.5, 6.0)
"""Standard errors that cross-validation chooses from."""
_NOT_STRAGGLERS = "common_mode"


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was said about one run.

    Args:
        file: Its name.
        kind: What was done to it.
        factor: How much slower.
        onset: First slow step; None: nothing was done.
        right: Step at which each true straggler was named.
        wrong: Step at which each other rank was named, or a true one before its time.
        missed: True stragglers nobody named.
        slow: Ranks of the second tier: persistently slower by the limit.
        common: Step at which the whole run was said to be slower; None: never.
        rank_steps: Steps times ranks that were looked at.
    """

    file: str
    kind: str
    factor: float
    onset: int | None
    right: dict[int, int]
    wrong: dict[int, int]
    missed: tuple[int, ...]
    slow: tuple[int, ...]
    common: int | None
    rank_steps: int

    @property
    def counts(self) -> Counts:
        """By rank."""
        return Counts(len(self.right), len(self.wrong), len(self.missed))

    @property
    def delay(self) -> int | None:
        """Steps from the onset to the first right name; None: none came."""
        if self.onset is None or not self.right:
            return None
        return min(self.right.values()) - self.onset


def judge_run(run: LabelledRun, errors: float | None = None) -> RunOutcome:
    """Let the detector see one run from its first step to its last."""
    limits = StragglerLimits()
    if errors is not None:
        limits = replace(limits, scan=ScanLimits(errors=errors))
    window = run.window()
    named: dict[int, int] = {}
    slow: set[int] = set()
    common: int | None = None
    for finding in find_stragglers(window, limits):
        if finding.rule_id == "slowdown.run":
            common = int(finding.at) if common is None else common
            continue
        if finding.rule_id == "straggler.rank":
            slow.update(finding.ranks)
        for rank in finding.ranks:
            named.setdefault(rank, int(finding.at))
    right = {rank: at for rank, at in named.items() if rank in run.ranks and _in_time(run, at)}
    return RunOutcome(
        file=run.file.name, kind=run.kind, factor=run.factor, onset=run.onset, right=right,
        wrong={rank: at for rank, at in named.items() if rank not in right},
        missed=tuple(sorted(run.ranks - right.keys())), slow=tuple(sorted(slow)), common=common,
        rank_steps=next(iter(window.sections_s.values())).size,
    )  # fmt: skip


def evaluate(folder: Path, pool: Executor) -> tuple[tuple[Row, ...], tuple[RunOutcome, ...]]:
    """Rows for the report, and what was said about each run."""
    runs = labelled_runs(folder)
    usual = StragglerLimits().scan.errors
    by_errors = {errors: list(pool.map(partial(judge_run, errors=errors), runs)) for errors in GRID}
    outcomes = by_errors[usual]
    return _rows(outcomes, by_errors), tuple(outcomes)


def _in_time(run: LabelledRun, at: int) -> bool:
    return run.onset is not None and run.onset <= at and (run.end is None or at <= run.end)


def _rows(
    outcomes: Sequence[RunOutcome], by_errors: Mapping[float, Sequence[RunOutcome]]
) -> tuple[Row, ...]:
    counts = total(outcomes)
    delays = [each.delay for each in outcomes if each.delay is not None]
    millions = sum(each.rank_steps for each in outcomes) / 1e6
    low, high = wilson(counts.right, counts.right + counts.wrong)
    return (
        row("stragglers: precision", counts.precision, "share", goal=at_least(0.95),
            note=f"by rank, {counts.right} right and {counts.wrong} wrong of {len(outcomes)} runs; "
            f"95 % interval {low:.2f} to {high:.2f}; {counts.wrong / millions:.2g} false alarms in "
            "a million rank-steps"),
        row("stragglers: recall", counts.recall, "share", goal=at_least(0.90),
            note=f"by rank; runs with none named: {_silent(outcomes) or 'none'}"),
        row("stragglers: delay", median(delays), "steps", samples=delays, goal=at_most(25),
            note=f"median of {len(delays)} runs from the onset to the first right name; "
            f"{_delays_by_kind(outcomes)}"),
        row("stragglers: delay, 9 of 10", percentile(delays, 0.9), "steps",
            note="a ramp is slow to show: its onset is where it is still zero"),
        *_cross_validated(by_errors),
        _second_tier(outcomes),
        _common(outcomes),
    )  # fmt: skip


def total(outcomes: Sequence[RunOutcome]) -> Counts:
    """All runs together, by rank."""
    return sum((each.counts for each in outcomes), Counts())


def _silent(outcomes: Sequence[RunOutcome]) -> str:
    return ", ".join(
        f"{each.file} ({each.kind} {each.factor:g})"
        for each in outcomes if each.missed and not each.right
    )  # fmt: skip


def _delays_by_kind(outcomes: Sequence[RunOutcome]) -> str:
    kinds = sorted({each.kind for each in outcomes if each.delay is not None})
    told = []
    for kind in kinds:
        delays = [each.delay for each in outcomes if each.kind == kind and each.delay is not None]
        told.append(f"{kind} {median(delays):g}")
    return ", ".join(told)


def _cross_validated(by_errors: Mapping[float, Sequence[RunOutcome]]) -> tuple[Row, ...]:
    """The one threshold chosen on four fifths of the runs, judged on the fifth; five times."""
    num = len(next(iter(by_errors.values())))
    fold = folds(num)
    held: list[RunOutcome] = []
    chosen = []
    for part in range(FOLDS):
        seen = [index for index in range(num) if fold[index] != part]
        best = max(by_errors, key=lambda errors: _worth([by_errors[errors][i] for i in seen]))
        chosen.append(best)
        held += [by_errors[best][index] for index in range(num) if fold[index] == part]
    counts = total(held)
    delays = [each.delay for each in held if each.delay is not None]
    note = (
        f"5 folds over runs; errors chosen from {', '.join(f'{each:g}' for each in by_errors)} on "
        f"the others: {spread(chosen)}"
    )
    return (
        row("stragglers, cross-validated: precision", counts.precision, "share", note=note),
        row("stragglers, cross-validated: recall", counts.recall, "share"),
        row("stragglers, cross-validated: delay", median(delays), "steps"),
    )


def _worth(outcomes: Sequence[RunOutcome]) -> tuple[float, float]:
    """F1, and of equals the quicker."""
    delays = [each.delay for each in outcomes if each.delay is not None]
    return total(outcomes).f1, -median(delays) if delays else 0.0


def _second_tier(outcomes: Sequence[RunOutcome]) -> Row:
    limit = StragglerLimits().slow
    counts = Counts()
    for each in outcomes:
        true = set(each.right) | set(each.missed)
        is_slow = each.factor >= 1 + 1.2 * limit and each.kind not in ("ramp", "intermittent")
        named = set(each.slow)
        counts += Counts(len(named & true), len(named - true), len(true - named) if is_slow else 0)
    return row(
        "stragglers of the second tier: precision", counts.precision, "share",
        note=f"persistently slower by {limit:.0%}: {counts.right} right, {counts.wrong} wrong; of "
        f"those clearly slower {counts.missed} missed",
    )  # fmt: skip


def _common(outcomes: Sequence[RunOutcome]) -> Row:
    slower = [each for each in outcomes if each.kind == _NOT_STRAGGLERS]
    found = sum(each.common is not None for each in slower)
    wrong = sum(len(each.wrong) for each in slower)
    false = sum(each.common is not None for each in outcomes if each.onset is None)
    return row(
        "whole runs that became slower: found", found / len(slower) if slower else float("nan"),
        "share", note=f"{found} of {len(slower)}, as an alert of its own; {wrong} ranks wrongly "
        f"named in them; {false} alerts in runs to which nothing was done",
    )  # fmt: skip
