"""Ranks and nodes that are slower than they were while the others are not, step by step.

The step time of a synchronous run is the same on all ranks, so only the time a rank spends on its
own work (all sections but waiting for the others) tells who is slow. It is compared twice: across
ranks at each step, which takes out what slows the whole job, and with the rank's own past, which
takes out that no two ranks are equally fast.

Across ranks the reference is the lower quartile, not the median: it stays with the healthy ranks
when half of them (one of two nodes) are slow. Spikes are clipped, so that a rank that stutters
once in a hundred steps is not slow. What is left is noise around zero with a known spread, and the
mean of the last w steps is tested for being above zero for several w at once: short ones see a
large slow-down at once, long ones a small one after more steps. A node is tested as the mean of its
ranks, which sees a slow-down that none of them shows alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.health.finding import Evidence, Finding
from cloudshift_lab.health.scan import Flags, Floats, Scan, ScanLimits
from cloudshift_lab.health.straggler_words import (
    Slow,
    degrading,
    slow_node,
    slow_run,
    straggler,
)
from cloudshift_lab.health.windows import StepWindow

QUANTILE = 0.25
"""Of the ranks' times, the reference of a step."""
MAD_TO_SIGMA = 1.4826
_SHARE_STEPS = 20


@dataclass(frozen=True)
class StragglerLimits:
    """When a rank counts as slow; shares are of the step.

    Args:
        scan: How means are tested. At 5.5 errors a healthy rank is suspected less than once in a
            million steps.
        baseline_steps: Steps of the first baseline; nothing is said before they are over.
        clip: Residuals beyond so many sigmas count as these.
        floor: Least excess that is worth a word.
        slow: Persistent excess that makes a degrading rank a straggler.
        slow_steps: Steps of each of the windows that have to show it.
        slow_windows: How many such windows in a row.
        node_share: A node is slow only if so large a share of its ranks is.
    """

    scan: ScanLimits = field(default_factory=ScanLimits)
    baseline_steps: int = 100
    clip: float = 2.5
    floor: float = 0.02
    slow: float = 0.10
    slow_steps: int = 10
    slow_windows: int = 3
    node_share: float = 0.75


def middle(values: Floats, share: float = 0.5) -> Floats:
    """Quantile of each column of [samples, columns], without interpolation; NaN is left out.

    NaN where a column has nothing else.
    """
    is_known = np.isfinite(values)
    if is_known.all():
        at = int(share * (len(values) - 1) + 0.5)
        found: Floats = np.partition(values, at, axis=0)[at]
        return found
    ordered = np.sort(np.where(is_known, values, np.nan), axis=0)  # NaN comes last
    place = (share * (np.maximum(is_known.sum(axis=0), 1) - 1) + 0.5).astype(np.int64)
    taken: Floats = np.take_along_axis(ordered, place[None], axis=0)[0]
    return taken


def spread_of(values: Floats, least: float) -> float:
    """Sigma of normal values, from the median distance to zero, so that spikes do not count."""
    distance = float(middle(np.abs(values).reshape(-1, 1))[0])
    return max(MAD_TO_SIGMA * distance, least) if distance == distance else least


class StragglerWatch:
    """Follows a run step by step. Deterministic: the same steps give the same findings.

    Args:
        sections: Names of the sections a rank spends its own time in.
        num_ranks: Ranks of the run, >= 2.
        ranks_per_node: Neighbours in rank order that share a node.
        limits: When a rank counts as slow.
    """

    def __init__(
        self,
        sections: Sequence[str],
        num_ranks: int,
        ranks_per_node: int,
        limits: StragglerLimits | None = None,
    ) -> None:
        self._sections = tuple(sections)
        self._num_ranks = num_ranks
        self._per_node = ranks_per_node if num_ranks % ranks_per_node == 0 else num_ranks
        self._limits = limits or StragglerLimits()
        self._first: list[Floats] = []
        self._first_parts: list[Floats] = []
        self._known: _Known | None = None

    def observe(self, step: int, sections_s: Floats) -> tuple[Finding, ...]:
        """Take in one step.

        Args:
            step: Its number.
            sections_s: Seconds per section and rank, [sections, ranks]; NaN or 0: not known.

        Returns:
            What this step adds: a rank that became degrading or a straggler, a node, the whole run.

        Raises:
            UsageError: The array is of another shape.
        """
        if sections_s.shape != (len(self._sections), self._num_ranks):
            raise UsageError(
                f"times of shape {sections_s.shape} are not those of {len(self._sections)} "
                f"sections and {self._num_ranks} ranks; start a new watch when the ranks change"
            )
        own_s = sections_s.sum(axis=0)
        log_s = np.log(np.where(own_s > 0, own_s, np.nan))
        parts = sections_s - middle(sections_s.T, QUANTILE)[:, None]
        if self._known is None:
            self._first.append(log_s)
            self._first_parts.append(parts)
            if len(self._first) >= self._limits.baseline_steps:
                self._known = _Known(
                    np.array(self._first), np.array(self._first_parts), self._per_node, self._limits
                )
                self._first, self._first_parts = [], []
            return ()
        return self._known.judge(step, log_s, parts, self._sections)

    @property
    def degrading(self) -> tuple[int, ...]:
        """Ranks that are slower than their own past now."""
        return () if self._known is None else self._known.degrading

    @property
    def stragglers(self) -> tuple[int, ...]:
        """Ranks that have been slower by the limit for long enough, and still are."""
        return () if self._known is None else self._known.stragglers

    @property
    def slow_nodes(self) -> tuple[int, ...]:
        """Nodes most of whose ranks are slower than their own past now."""
        return () if self._known is None else self._known.slow_nodes

    @property
    def is_slow(self) -> bool:
        """Whether all ranks alike are slower than they were."""
        return self._known is not None and self._known.is_slow

    @property
    def is_judging(self) -> bool:
        """Whether the first baseline is complete; nothing is said before."""
        return self._known is not None


class _Known:
    """What is known after the first baseline."""

    def __init__(
        self, log_s: Floats, parts: Floats, per_node: int, limits: StragglerLimits
    ) -> None:
        self._limits, self._per_node = limits, per_node
        self._offset = np.nan_to_num(middle(log_s - middle(log_s.T)[:, None]))
        own = log_s - self._offset
        reference = middle(own.T, QUANTILE)
        self._above = float(np.nan_to_num(middle((own - reference[:, None]).reshape(-1, 1))[0]))
        residuals = own - (reference + self._above)[:, None]
        least = 2 * limits.floor / limits.clip  # so that what is clipped can still pass the floor
        self._sigma = spread_of(residuals, least)
        clipped = self._clip(np.nan_to_num(residuals))
        self._ranks = Scan(clipped, limits.scan, limits.floor / self._sigma)
        self._nodes = Scan(
            self._by_node(clipped).mean(axis=2), limits.scan, limits.floor / self._sigma
        )
        self._level = float(middle(reference[:, None])[0])
        self._wobble = spread_of(reference - self._level, least)
        common = np.array([self._raised_by(each) for each in reference])
        self._common = Scan(common[:, None], limits.scan, limits.floor / self._wobble)
        self._parts_before = np.median(np.nan_to_num(parts), axis=0)
        keep = max(limits.slow_steps * limits.slow_windows, max(limits.scan.windows))
        self._residuals = np.zeros((keep, log_s.shape[1]))
        self._parts = np.zeros((keep, *self._parts_before.shape))
        self._at = 0
        self._slow: Flags = np.zeros(log_s.shape[1], bool)

    @property
    def degrading(self) -> tuple[int, ...]:
        return tuple(int(rank) for rank in np.flatnonzero(self._ranks.raised))

    @property
    def stragglers(self) -> tuple[int, ...]:
        return tuple(int(rank) for rank in np.flatnonzero(self._slow))

    @property
    def slow_nodes(self) -> tuple[int, ...]:
        return tuple(int(node) for node in np.flatnonzero(self._nodes.raised))

    @property
    def is_slow(self) -> bool:
        return bool(self._common.raised[0])

    def judge(
        self, step: int, log_s: Floats, parts: Floats, sections: Sequence[str]
    ) -> tuple[Finding, ...]:
        own = log_s - self._offset
        reference = float(middle(own[:, None], QUANTILE)[0])
        residuals = np.nan_to_num(own - reference - self._above)
        self._keep(residuals, parts)
        found = self._judge_ranks(step, self._clip(residuals), sections)
        found += self._judge_nodes(step, self._clip(residuals))
        found += self._judge_run(step, reference)
        return tuple(found)

    def _judge_ranks(self, step: int, clipped: Floats, sections: Sequence[str]) -> list[Finding]:
        hits, windows, errors = self._ranks.push(clipped)
        found = []
        for rank in map(int, np.flatnonzero(hits)):
            slow = self._slow_now(step, (rank,), int(windows[rank]), float(errors[rank]))
            found.append(degrading(replace(slow, blamed=self._blamed(rank, slow.steps, sections))))
        suspected = self._suspected()
        slow_now: Flags = suspected.copy()
        if suspected.any():
            slow_now &= self._is_slow()
        found += [
            straggler(self._persistent(step, int(rank), sections))
            for rank in np.flatnonzero(slow_now & ~self._slow)
        ]
        self._slow &= suspected
        self._slow |= slow_now
        return found

    def _judge_nodes(self, step: int, clipped: Floats) -> list[Finding]:
        if self._nodes.raised.size < 2:
            return []
        rises = self._by_node(self._ranks.excess(_SHARE_STEPS)[None])[0]
        share = (rises > 0.5 * rises.mean(axis=1, keepdims=True)).mean(axis=1)
        hits, windows, errors = self._nodes.push(
            self._by_node(clipped[None])[0].mean(axis=1), allowed=share >= self._limits.node_share
        )
        found = []
        for node in map(int, np.flatnonzero(hits)):
            ranks = tuple(range(node * self._per_node, (node + 1) * self._per_node))
            slow = self._slow_now(step, ranks, int(windows[node]), float(errors[node]))
            found.append(slow_node(slow, node))
        return found

    def _judge_run(self, step: int, reference: float) -> list[Finding]:
        hits, windows, errors = self._common.push(np.array([self._raised_by(reference)]))
        if not hits[0]:
            return []
        excess = math.expm1(float(self._common.excess(int(windows[0]))[0]) * self._wobble)
        slow = Slow(
            step=step, ranks=(), excess=excess, steps=int(windows[0]), errors=float(errors[0]),
            limit=self._limits.scan.errors,
        )  # fmt: skip
        return [slow_run(slow)]

    def _raised_by(self, reference: float) -> float:
        """How far a step's reference is above the usual, in its own sigmas; unknown ones: 0."""
        above = (reference - self._level) / self._wobble
        return float(np.clip(np.nan_to_num(above), -self._limits.clip, self._limits.clip))

    def _suspected(self) -> Flags:
        nodes = np.repeat(self._nodes.raised, self._per_node)
        return self._ranks.raised | nodes

    def _is_slow(self) -> Flags:
        steps, num = self._limits.slow_steps, self._limits.slow_windows
        newest = self._newest(steps * num).reshape(num, steps, -1)
        least: Floats = np.median(newest, axis=1).min(axis=0)
        return least >= math.log1p(self._limits.slow)

    def _newest(self, steps: int) -> Floats:
        """Residuals of the newest steps, newest first, above each rank's own past."""
        order = (self._at - 1 - np.arange(steps)) % len(self._residuals)
        newest: Floats = self._residuals[order] - self._ranks.mean * self._sigma
        return newest

    def _slow_now(self, step: int, ranks: tuple[int, ...], window: int, errors: float) -> Slow:
        """Since when within the window, and by how much: where the mean stands out most."""
        newest = self._newest(window)[:, list(ranks)].mean(axis=1)
        lengths = np.arange(1, window + 1)
        steps = int(np.argmax(np.cumsum(newest) / np.sqrt(lengths))) + 1
        excess = math.expm1(float(np.median(newest[:steps])))
        return Slow(
            step=step, ranks=ranks, excess=excess, steps=steps, errors=errors,
            limit=self._limits.scan.errors,
        )  # fmt: skip

    def _persistent(self, step: int, rank: int, sections: Sequence[str]) -> Slow:
        steps = self._limits.slow_steps * self._limits.slow_windows
        newest = self._newest(steps)[:, rank]
        excess = float(np.median(newest))
        error = max(float(np.std(newest)), 1e-9) / math.sqrt(steps)
        return Slow(
            step=step, ranks=(rank,), excess=math.expm1(excess), steps=steps,
            errors=excess / error, limit=math.log1p(self._limits.slow) / error,
            blamed=self._blamed(rank, steps, sections),
        )  # fmt: skip

    def _blamed(self, rank: int, steps: int, sections: Sequence[str]) -> Evidence:
        """The section that grew most."""
        order = (self._at - 1 - np.arange(steps)) % len(self._residuals)
        grown = np.median(self._parts[order, :, rank], axis=0) - self._parts_before[:, rank]
        most = int(np.argmax(grown))
        return Evidence(f"growth of {sections[most]}", round(float(grown[most]), 6), "s")

    def _keep(self, residuals: Floats, parts: Floats) -> None:
        at = self._at % len(self._residuals)
        self._residuals[at] = residuals
        self._parts[at] = np.nan_to_num(parts)
        self._at += 1

    def _clip(self, residuals: Floats) -> Floats:
        return np.clip(residuals / self._sigma, -self._limits.clip, self._limits.clip)

    def _by_node(self, by_rank: Floats) -> Floats:
        return by_rank.reshape(len(by_rank), -1, self._per_node)


def find_stragglers(
    window: StepWindow, limits: StragglerLimits | None = None
) -> tuple[Finding, ...]:
    """Everything that became slow within a window, oldest first."""
    names = tuple(window.sections_s)
    cube = np.stack([window.sections_s[name] for name in names], axis=1)
    watch = StragglerWatch(names, cube.shape[2], window.ranks_per_node, limits)
    found: list[Finding] = []
    for row, sections_s in enumerate(cube):
        found += watch.observe(window.first_step + row, sections_s)
    return tuple(found)
