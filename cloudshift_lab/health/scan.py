"""A test of many series at once, sample by sample: is the mean of the newest above the own past?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
REFRESH_SAMPLES = 25
_MOST_ALIKE = 0.9


@dataclass(frozen=True)
class ScanLimits:
    """What is tested.

    Args:
        windows: Lengths of the means that are tested, samples, rising: short ones see a large
            change at once, long ones a small one later.
        errors: Standard errors above its own past that make a series raised.
        memory: How far back the own past reaches, samples.
        lag: The newest samples are no part of the past, so that a ramp does not hide in it.
        clear: So many samples whose mean is below half of the floor lower it again; at least the
            longest window, or that would raise it again at once.
    """

    windows: tuple[int, ...] = (5, 10, 20, 40, 80)
    errors: float = 5.5
    memory: int = 600
    lag: int = 100
    clear: int = 100


class Scan:
    """Two-sample z-tests of several window lengths, for many series side by side.

    The standard error counts both the window's and the past's, so that a short past raises no false
    alarm; the spread is estimated from the past too, and so is how much a sample resembles the one
    before it, since the mean of such samples wavers more. A raised series' past stands still until
    it comes down, so that what is wrong does not become normal.

    Args:
        past: The first samples, [samples, series]; at least ``REFRESH_SAMPLES`` of them.
        limits: What is tested.
        floor: Least excess of a mean that counts, in the samples' unit.
    """

    def __init__(self, past: Floats, limits: ScanLimits, floor: float) -> None:
        num = past.shape[1]
        self._limits, self._floor = limits, floor
        self._windows = np.array(limits.windows)
        size = limits.memory + limits.lag + max(*limits.windows, limits.clear) + REFRESH_SAMPLES
        self._size = max(size, len(past)) + 1
        self._sums = np.zeros((self._size, num))
        self._squares = np.zeros((self._size, num))
        self._products = np.zeros((self._size, num))
        self._last = np.zeros(num)
        self._first = self._count = 0
        self.raised: Flags = np.zeros(num, bool)
        self._since: Ints = np.zeros(num, np.int64)
        self._mean: Floats = np.zeros(num)
        self._past: Floats = np.ones(num)
        self._spread = 1.0
        for sample in past:
            self._append(sample)
        self._first = self._count
        self._refresh(0, self._count)

    @property
    def mean(self) -> Floats:
        """Of each series' own past."""
        return self._mean

    def excess(self, samples: int) -> Floats:
        """How far the mean of the newest ``samples`` is above the past's, per series."""
        samples = min(samples, self._count)
        return self._between(self._sums, self._count - samples, self._count) / samples - self._mean

    def push(self, sample: Floats, *, allowed: Flags | None = None) -> tuple[Flags, Ints, Floats]:
        """Take in one sample of each series.

        Args:
            sample: One value per series.
            allowed: Series that may be raised; None: all.

        Returns:
            Which are raised by this sample, and for those the window that showed it, and by how
            many errors.
        """
        if (self._count - self._first) % REFRESH_SAMPLES == 0:
            newest = max(self._first, self._count - self._limits.lag)
            self._refresh(max(0, newest - self._limits.memory), newest)
        self._append(sample)
        self._lower()
        num_new = self._count - self._first
        windows = self._windows[self._windows <= num_new]
        if not len(windows):
            return (
                np.zeros(len(sample), bool),
                np.zeros(len(sample), np.int64),
                np.zeros(len(sample)),
            )
        newest_sum = self._sums[self._count % self._size]
        sums = newest_sum - self._sums[(self._count - windows) % self._size]
        lengths = windows[:, None].astype(float)
        rises = sums - lengths * self._mean
        errors = rises / (self._spread * np.sqrt(lengths + lengths**2 / self._past))
        errors = np.where(rises / lengths > self._floor, errors, 0.0)
        top = errors.max(axis=0)
        hits = (top > self._limits.errors) & ~self.raised
        if allowed is not None:
            hits &= allowed
        self.raised = self.raised | hits
        self._since = np.where(hits, self._count, self._since)
        return hits, windows[np.argmax(errors, axis=0)] if hits.any() else self._since, top

    def _append(self, sample: Floats) -> None:
        here, there = self._count % self._size, (self._count + 1) % self._size
        self._sums[there] = self._sums[here] + sample
        self._squares[there] = self._squares[here] + sample**2
        self._products[there] = self._products[here] + sample * self._last
        self._last = sample
        self._count += 1

    def _between(self, sums: Floats, begin: int, end: int) -> Floats:
        between: Floats = sums[end % self._size] - sums[begin % self._size]
        return between

    def _refresh(self, begin: int, end: int) -> None:
        num = end - begin
        mean = self._between(self._sums, begin, end) / num
        variance = self._between(self._squares, begin, end) / num - mean**2
        self._mean = np.where(self.raised, self._mean, mean)
        self._past = np.where(self.raised, self._past, float(num))
        product = self._between(self._products, begin + 1, end) / (num - 1) - mean**2
        alike = float(np.median(product / np.maximum(variance, 1e-12)))
        alike = min(max(alike, 0.0), _MOST_ALIKE)
        wavers = (1 + alike) / (1 - alike)  # of the long-run variance, were it autoregressive
        self._spread = float(np.sqrt(max(float(np.median(variance)) * wavers, 1e-12)))

    def _lower(self) -> None:
        if not self.raised.any():
            return
        is_long = self._count - self._since >= self._limits.clear
        is_low = self.excess(self._limits.clear) < self._floor / 2
        self.raised = self.raised & ~(is_long & is_low)
