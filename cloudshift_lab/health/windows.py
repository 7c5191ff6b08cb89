"""What detectors look at: numpy arrays with their units in their names, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepWindow:
    """Consecutive steps of a run.

    Args:
        first_step: Number of the first one.
        sections_s: Seconds a rank spent in each section of its own work, [steps, ranks]; without
            what it waited for the others. NaN: not known.
        ranks_per_node: Neighbours in rank order that share a node.
    """

    first_step: int
    sections_s: Mapping[str, Floats]
    ranks_per_node: int
