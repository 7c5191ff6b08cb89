"""What is told about a run's health and about what its time went into."""

from __future__ import annotations

import msgspec

from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.goodput import Goodput
from cloudshift_lab.health.live import Looked
from cloudshift_lab.health.policy import Verdict


class Told(msgspec.Struct, frozen=True):
    """A finding that stands, since when (wall-clock seconds), and what may be done about it."""

    finding: Finding
    since: float
    verdict: Verdict
    because: str


class Bygone(msgspec.Struct, frozen=True):
    """A finding of before; ``until`` None: it stood when somebody last looked."""

    words: str
    severity: str
    since: float
    until: float | None


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its detectors see it.

    Args:
        run_id: The run.
        name: What people call it.
        state: Of the run.
        as_of: Wall-clock seconds.
        standing: What stands against it, gravest first.
        bygone: What stood before, newest first.
        looked: What was looked at, so that silence can be told from blindness.
    """

    run_id: str
    name: str
    state: str
    as_of: float
    standing: tuple[Told, ...] = ()
    bygone: tuple[Bygone, ...] = ()
    looked: tuple[Looked, ...] = ()


class GoodputReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's time went into, and what is to be expected.

    Args:
        run_id: The run.
        name: What people call it.
        state: Of the run.
        began_at: When it was asked for, wall-clock seconds.
        as_of: Wall-clock seconds.
        whole_s: Time that is counted, seconds: until its newest step, or its end.
        seconds: The same per cause.
        measured: As shares, and per failure.
        num_failures: Failures in it.
        num_healed: Those after which the attempt itself went on.
        lost_steps: Steps that were done twice.
        num_saves: Saves that were seen to be committed.
        expected: In the long run, from rates; None where a figure for it is missing.
        basis: What that is computed from, a line each.
    """

    run_id: str
    name: str
    state: str
    began_at: float
    as_of: float
    whole_s: float
    seconds: dict[str, float]
    measured: Goodput
    num_failures: int = 0
    num_healed: int = 0
    lost_steps: int = 0
    num_saves: int = 0
    expected: Goodput | None = None
    basis: tuple[str, ...] = ()
