"""Where a job could run, what is seen there at one moment, and what a policy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from cloudshift_lab.core.errors import UsageError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Mode = Literal["spot", "on-demand"]


@dataclass(frozen=True, eq=False)
class Places:
    """Places in one fixed order; a place is a zone of a region that offers what the job needs.

    Args:
        names: Of the places.
        regions: Each place's region: inside one, a checkpoint moves for nothing.
        on_demand_usd_h: [places], what the whole job costs there on demand; inf: not offered.
        carry_usd: [places, places], egress for the checkpoint from row to column.
        pace: [places], training speed there, 1 is the speed that the job's work is counted in.
    """

    names: tuple[str, ...]
    regions: tuple[str, ...]
    on_demand_usd_h: Floats
    carry_usd: Floats
    pace: Floats

    @classmethod
    def of(
        cls, names: Sequence[str], regions: Sequence[str], on_demand_usd_h: Floats,
        carry_usd: Floats, pace: Floats | None = None,
    ) -> Places:  # fmt: skip
        """Places that are checked; equally fast ones if no pace is given.

        Raises:
            UsageError: Something is missing, negative or of another length.
        """
        speed = np.ones(len(names)) if pace is None else pace
        places = cls(tuple(names), tuple(regions), on_demand_usd_h, carry_usd, speed)
        _check_places(places)
        return places

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Task:
    """A job with a deadline, hours: its work where it runs at pace 1, and a start's cost in time.

    Args:
        work_h: Training without any interruption.
        deadline_h: Since the beginning; inf: none.
        start_h: From taking a machine until it trains.
        tick_h: Between two decisions; a tick that was begun is paid for.
    """

    work_h: float
    deadline_h: float
    start_h: float
    tick_h: float

    def __post_init__(self) -> None:
        if not (0 < self.work_h < np.inf and self.tick_h > 0 and self.start_h >= 0):
            raise UsageError("a job needs work and a tick above 0 hours, and a start of 0 or more")
        if self.deadline_h < self.work_h + self.start_h:
            raise UsageError(
                f"{self.work_h:g} h of work after a start of {self.start_h:g} h are not done in "
                f"{self.deadline_h:g} h: give the job a later deadline"
            )


@dataclass(frozen=True)
class Choice:
    """Where to run for the next tick, and on which kind of machine."""

    place: int
    mode: Mode


@dataclass(frozen=True, eq=False)
class Look:
    """What is known at the beginning of a tick.

    Args:
        at_h: Since the beginning of the job.
        done_h: Work that no failure can take away: what is in a committed checkpoint.
        spot_usd_h: [places], the whole job's spot price; inf where it is unknown.
        is_up: [places], whether the whole job could be had there now.
        running: Where the job runs; None after a preemption or while it waits.
        starting_h: What is left of the start there, carrying the checkpoint included.
        home: Where the newest checkpoint lies; None before the first start.
    """

    at_h: float
    done_h: float
    spot_usd_h: Floats
    is_up: Flags
    running: Choice | None = None
    starting_h: float = 0.0
    home: int | None = None


class Policy(Protocol):
    """Decides at every tick; the same object in production and in a replay."""

    def choose(self, look: Look) -> Choice | None:
        """Where to be for the next tick; None: wait."""
        ...


def _check_places(places: Places) -> None:
    num = len(places.names)
    shapes = (
        len(places.regions), *places.on_demand_usd_h.shape, *places.carry_usd.shape,
        *places.pace.shape,
    )  # fmt: skip
    if not num:
        raise UsageError("there is no place to run at; add offers to the price list")
    if shapes != (num,) * 5:
        raise UsageError("every place needs a region, a price, a pace and egress; mend the call")
    if not (places.on_demand_usd_h > 0).all():
        raise UsageError("a price on demand is missing or not above 0; mend the price list")
    if not (np.isfinite(places.carry_usd).all() and (places.carry_usd >= 0).all()):
        raise UsageError("a price of egress is missing or below 0; mend the price list")
    if not (np.isfinite(places.pace).all() and (places.pace > 0).all()):
        raise UsageError("a pace is missing or not above 0; mend the performance table")
