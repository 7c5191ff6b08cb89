"""Step reports of ranks as arrays: what telemetry gives to those who judge a running run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StepRows:
    """Rows of one generation of a run, oldest first; all arrays are [rows].

    Args:
        generation: Of the attempt that sent them.
        at: When the step ended, wall-clock seconds of the rank's machine.
        rank: Who.
        step: Which step.
        loss: NaN: the rank gave none, or none that is a number (see ``has_loss``).
        has_loss: Whether a finite loss came.
        step_s: Since the end of the step before, seconds; NaN: not told.
        sections_s: Seconds in each named section of the rank's own; NaN: not told.
    """

    generation: int
    at: Floats
    rank: Ints
    step: Ints
    loss: Floats
    has_loss: Flags
    step_s: Floats
    sections_s: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.at)
