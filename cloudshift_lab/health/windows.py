"""What detectors look at: numpy arrays with their units in their names, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class ProgressWindow:
    """Where all ranks are now, and since when, from their progress records.

    Args:
        now: Seconds of the reader's clock.
        steps: Step each rank is in, [ranks].
        collectives: How many collectives each rank has entered within it, [ranks].
        still_s: Seconds since a rank's record last changed, [ranks].
        sections: Section each rank is in; empty outside of all.
        step_s: Durations of the run's newest steps, seconds; may be empty.
        limits_s: Sections that may take longer than a step (compile, save, evaluate): seconds each.
        waits_in: What the flight recorder shows a rank to wait in, for those that have one:
            ``gloo:all_reduce``.
    """

    now: float
    steps: Ints
    collectives: Ints
    still_s: Floats
    sections: tuple[str, ...]
    step_s: Floats
    limits_s: Mapping[str, float] = field(default_factory=dict)
    waits_in: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LossWindow:
    """Consecutive steps of a run, ending with the newest.

    Args:
        first_step: Number of the first one.
        loss: Per step.
        grad_norm: Per step; None where it is not reported.
    """

    first_step: int
    loss: Floats
    grad_norm: Floats | None = None


@dataclass(frozen=True)
class ReplicaWindow:
    """Hashes of what has to be equal on all replicas after one step.

    Args:
        step: After which.
        ranks: Rank that holds each replica.
        hashes: Per tensor, one hash per replica in the order of ``ranks``.
    """

    step: int
    ranks: tuple[int, ...]
    hashes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class GpuWindow:
    """One GPU, a row every ``every_s`` seconds, oldest first; all arrays are [rows].

    Counters are given as what was added since the row before, gauges as read; NaN: not read.

    Args:
        gpu: Its name: ``node-7/PCI:0000:3b:00``.
        begin_s: Time of the first row, seconds.
        every_s: Seconds between rows.
        temp_c: Of the core, degrees Celsius.
        power_w: Watts.
        ecc_corrected: Corrected memory errors added.
        remapped_rows: Memory rows remapped so far.
        pcie_replays: Replays added.
        nic_flaps: Losses of the node's link added.
        throttle_bits: NVML's clocks event reasons.
    """

    gpu: str
    begin_s: float
    every_s: float
    temp_c: Floats
    power_w: Floats
    ecc_corrected: Floats
    remapped_rows: Floats
    pcie_replays: Floats
    nic_flaps: Floats
    throttle_bits: Ints

    @property
    def times_s(self) -> Floats:
        """Time of each row."""
        times: Floats = self.begin_s + self.every_s * np.arange(len(self.temp_c), dtype=float)
        return times


@dataclass(frozen=True)
class DiskWindow:
    """One file system of a node, oldest row first.

    Args:
        disk: Its name: ``node-7:/scratch``.
        times_s: Of the rows.
        free_bytes: Per row.
        total_bytes: Of the file system.
        latency_s: Of one small write with fsync, per row; NaN: not tried.
        is_writable: Whether the newest write worked.
    """

    disk: str
    times_s: Floats
    free_bytes: Floats
    total_bytes: float
    latency_s: Floats
    is_writable: bool = True


@dataclass(frozen=True)
class LinkWindow:
    """One network link of a node, oldest row first; counters as what was added.

    Args:
        link: Its name: ``node-7:mlx5_0``.
        times_s: Of the rows.
        downs: Times it was lost, per row.
        packets: Sent and received, per row.
        errors: Broken or dropped ones, per row.
        is_up: Whether it is up now.
        gbps: Its speed now; None: not known.
        rated_gbps: What it should be; None: not known.
    """

    link: str
    times_s: Floats
    downs: Floats
    packets: Floats
    errors: Floats
    is_up: bool = True
    gbps: float | None = None
    rated_gbps: float | None = None


@dataclass(frozen=True)
class ClockWindow:
    """How far clocks of nodes are off the reader's, each with what the measurement may be off.

    Args:
        now: Seconds of the reader's clock.
        offset_s: Per node, positive: ahead.
        error_s: Per node: half of the round trip it was measured over.
    """

    now: float
    offset_s: Mapping[str, float]
    error_s: Mapping[str, float]
