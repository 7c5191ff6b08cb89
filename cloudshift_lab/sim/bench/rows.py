"""What a benchmark says: rows with a goal, a value, every sample, and whether the goal was met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

Size = Literal["tiny", "full"]
Say = Callable[[str], None]
Order = Literal["at most", "at least", "exactly"]


class Goal(msgspec.Struct, frozen=True):
    """What a value has to be; a rival's row has none."""

    order: Order
    limit: float

    def holds(self, value: float) -> bool:
        """Whether a value meets it; a NaN never does."""
        if self.order == "exactly":
            return value == self.limit
        return value <= self.limit if self.order == "at most" else value >= self.limit


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure.

    ``samples`` are what ``value`` was computed from, in ``unit``; of a saving in percent, the raw
    and the stored bytes. ``passed`` is None for a figure
    without a goal: a rival's, or one that explains another; and where a tiny run says nothing.
    """

    name: str
    value: float
    unit: str
    samples: tuple[float, ...] = ()
    goal: Goal | None = None
    passed: bool | None = None
    note: str = ""
    full_only: bool = False


def row(
    name: str, value: float, unit: str, *, samples: Sequence[float] = (), goal: Goal | None = None,
    note: str = "", full_only: bool = False,
) -> Row:  # fmt: skip
    """A row that has been held against its goal; ``full_only``: a tiny run says nothing of it."""
    passed = None if goal is None else goal.holds(value)
    return Row(
        name=name, value=value, unit=unit, samples=tuple(samples), goal=goal, passed=passed,
        note=note, full_only=full_only,
    )  # fmt: skip


def untimed(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The same rows, with no verdict on what a tiny run says nothing of."""
    return tuple(
        msgspec.structs.replace(each, passed=None) if each.full_only else each for each in rows
    )


def at_most(limit: float) -> Goal:
    """The goal of no more."""
    return Goal("at most", limit)


def at_least(limit: float) -> Goal:
    """The goal of no less."""
    return Goal("at least", limit)


def exactly(limit: float) -> Goal:
    """The goal of just that."""
    return Goal("exactly", limit)


def median(samples: Sequence[float]) -> float:
    """The middle sample; NaN of none, so that nothing measured never meets a goal."""
    return statistics.median(samples) if samples else math.nan


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that ``share`` (0 to 1) of all do not exceed; NaN of none."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured: no names, no paths."""

    cpu: str
    num_cpus: int
    memory_bytes: int
    load_before: float
    system: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark's file.

    ``load_before`` of the machine says whether it was quiet: 1-minute load when it began.
    """

    bench: str
    size: Size
    command: str
    date: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    seconds: float
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every goal was met."""
        return all(each.passed is not False for each in self.rows)
