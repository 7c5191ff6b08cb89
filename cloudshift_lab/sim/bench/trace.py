"""Every optimizer step of every process, as the script itself saw it; and the pauses between."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.wire import from_json, to_json


class Traced(msgspec.Struct, frozen=True, array_like=True):
    """One optimizer step of one rank; ``began`` and ``ended`` wall-clock seconds."""

    rank: int
    step: int
    began: float
    ended: float
    loss: float
    pid: int


class Pause(msgspec.Struct, frozen=True):
    """What a move did to training, seconds.

    ``still_s``: the longest time in which no optimizer step ran anywhere, one that repeats an
    earlier step included. ``new_s``: from the end of the source's last step to the end of the
    first step that the run had not done before.
    """

    still_s: float
    new_s: float


def append(path: Path, traced: Traced) -> None:
    """Add a line; many processes may do so at once."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, to_json(traced) + b"\n")
    finally:
        os.close(descriptor)


def read(path: Path) -> tuple[Traced, ...]:
    """All whole lines, in the order of their steps' ends; none while there is no file."""
    if not path.exists():
        return ()
    lines = path.read_bytes().split(b"\n")[:-1]
    found = (from_json(line, Traced, what="a line of the trace") for line in lines)
    return tuple(sorted(found, key=lambda each: each.ended))


def pause_after(trace: Sequence[Traced], last_step: int) -> Pause:
    """The pause between ``last_step`` at the source and the first step after it.

    Raises:
        CloudshiftError: The trace has no such step, or none after it.
    """
    first = [each for each in trace if each.rank == 0]
    source = next((each for each in first if each.step == last_step), None)
    new = next((each for each in first if each.step > last_step), None)
    if source is None or new is None:
        raise CloudshiftError(f"the trace has no step {last_step} and one after it; run it again")
    quiet_since, still_s = source.ended, 0.0
    for each in sorted(first, key=lambda each: each.began):
        if each.ended <= source.ended or each.began > new.began:
            continue
        still_s = max(still_s, each.began - quiet_since)
        quiet_since = max(quiet_since, each.ended)
    return Pause(still_s, new.ended - source.ended)


def differing_losses(trace: Sequence[Traced], control: Sequence[Traced]) -> int:
    """Steps (of all ranks, repeated ones too) whose loss is not the control's, bit by bit.

    A step that the control does not have counts as differing.
    """
    expected = {(each.rank, each.step): each.loss for each in control}
    return sum(expected.get((each.rank, each.step)) != each.loss for each in trace)


def repeated_or_missing(trace: Sequence[Traced], *, first: int, last: int, sealed: int) -> int:
    """Steps from ``first`` to ``last`` without a trace, and those after ``sealed`` done twice."""
    done = [each.step for each in trace if each.rank == 0]
    missing = set(range(first, last + 1)) - set(done)
    again = len([s for s in done if s > sealed]) - len({s for s in done if s > sealed})
    return len(missing) + again


def step_s(trace: Sequence[Traced], *, since: float, until: float) -> tuple[float, ...]:
    """Times between the ends of rank 0's consecutive steps within a span of wall-clock time."""
    ends = [(e.step, e.ended) for e in trace if e.rank == 0 and since <= e.ended <= until]
    return tuple(later - before for (a, before), (b, later) in pairwise(ends) if b == a + 1)


def median(values: Sequence[float]) -> float:
    """The middle one. Raises CloudshiftError when there is none."""
    if not values:
        raise CloudshiftError("a span of the trace holds no two steps; take a larger state")
    return statistics.median(values)
