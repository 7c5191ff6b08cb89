"""Precision, recall, areas under curves and folds: what rules are judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloudshift_lab.health.windows import Floats

FOLDS = 5
_SEED = 20261123


@dataclass(frozen=True)
class Counts:
    """How often a rule was right, wrong, and silent where it should have spoken."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.right + other.right, self.wrong + other.wrong, self.missed + other.missed
        )

    @property
    def precision(self) -> float:
        """Right ones of all it said; NaN if it said nothing."""
        said = self.right + self.wrong
        return self.right / said if said else math.nan

    @property
    def recall(self) -> float:
        """Right ones of all there were; NaN if there was nothing."""
        there = self.right + self.missed
        return self.right / there if there else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 where nothing was right."""
        return 2 * self.right / max(1, 2 * self.right + self.wrong + self.missed)


def folds(num: int) -> Floats:
    """A fold, 0 to 4, for each of ``num`` items: the same each time, and evenly many of each."""
    order = np.random.default_rng(_SEED).permutation(num)
    return (order % FOLDS).astype(float)


def area_under_curve(happened: Floats, risk: Floats) -> float:
    """Probability that a case that happened was given more risk than one that did not."""
    _, place, times = np.unique(risk, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    num = float(happened.sum())
    others = len(happened) - num
    if not num or not others:
        return math.nan
    return float((ranks[happened > 0].sum() - num * (num + 1) / 2) / (num * others))


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    share, z = right / of, 1.96
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    reach = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return middle - reach, middle + reach


def spread(values: Sequence[float]) -> str:
    """Least and greatest, for a note."""
    told = [value for value in values if not math.isnan(value)]
    return f"{min(told):.2f} to {max(told):.2f}" if told else "none"
