"""Signs that a GPU or its link will fail: fixed rules, and a climb of the temperature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cloudshift_lab.health.finding import Action, Evidence, Finding, Subject
from cloudshift_lab.health.nvml import HW_SLOWDOWN, HW_THERMAL
from cloudshift_lab.health.scan import Flags, Floats
from cloudshift_lab.health.thermal import ClimbLimits, find_climbs
from cloudshift_lab.health.windows import GpuWindow

HOUR_S, MINUTE_S = 3600.0, 60.0


@dataclass(frozen=True)
class PrecursorLimits:
    """So many events within so many seconds.

    Args:
        ecc: Corrected memory errors in an hour.
        remapped: Memory rows remapped since the window began.
        hot_share: Share of ten minutes with clocks held down for heat by the hardware.
        flaps: Losses of the node's link in three hours.
        replays: PCIe replays in half an hour.
        climb: When the temperature climbs.
    """

    ecc: float = 10.0
    remapped: float = 1.0
    hot_share: float = 0.5
    flaps: float = 2.0
    replays: float = 10.0
    climb: ClimbLimits = field(default_factory=ClimbLimits)


class _Sign(NamedTuple):
    rule_id: str
    hits: Flags
    values: Floats
    limit: float
    what: str
    unit: str
    action: Action
    words: str


def first_precursors(
    window: GpuWindow, limits: PrecursorLimits | None = None
) -> tuple[Finding, ...]:
    """Each sign the first time it shows within the window, oldest first."""
    found = [
        _finding(window, sign, int(np.argmax(sign.hits)))
        for sign in _signs(window, limits or PrecursorLimits())
        if sign.hits.any()
    ]
    return tuple(sorted(found, key=lambda each: each.at))


def find_precursors(
    window: GpuWindow, limits: PrecursorLimits | None = None
) -> tuple[Finding, ...]:
    """The signs that show at the newest row."""
    last = len(window.temp_c) - 1
    if last < 0:
        return ()
    return tuple(
        _finding(window, sign, last)
        for sign in _signs(window, limits or PrecursorLimits())
        if sign.hits[last]
    )


def _signs(window: GpuWindow, limits: PrecursorLimits) -> list[_Sign]:
    return [
        make(window, limits)
        for make in (_ecc, _remapped, _throttled, _flapping, _replaying, _climbing)
    ]


def _ecc(window: GpuWindow, limits: PrecursorLimits) -> _Sign:
    values = _within(window, window.ecc_corrected, HOUR_S)
    return _Sign(
        "precursor.ecc", values >= limits.ecc, values, limits.ecc,
        "corrected memory errors in an hour", "", "drain and reset the GPU",
        "its memory needs more and more correcting; plan a drain and a reset",
    )  # fmt: skip


def _remapped(window: GpuWindow, limits: PrecursorLimits) -> _Sign:
    rows = np.nan_to_num(window.remapped_rows)
    values = rows - rows[:1]
    return _Sign(
        "precursor.remapped", values >= limits.remapped, values, limits.remapped,
        "memory rows remapped", "", "drain and reset the GPU",
        "a memory row broke and was remapped; plan a drain and a reset",
    )  # fmt: skip


def _throttled(window: GpuWindow, limits: PrecursorLimits) -> _Sign:
    held = (window.throttle_bits & (HW_THERMAL | HW_SLOWDOWN)) != 0
    span = 10 * MINUTE_S
    values = _within(window, held.astype(float), span) * window.every_s / span
    return _Sign(
        "precursor.throttled", values >= limits.hot_share, values, limits.hot_share,
        "share of ten minutes with clocks held down by the hardware", "share", "drain the node",
        "the hardware holds its clocks down; look at cooling and power",
    )  # fmt: skip


def _flapping(window: GpuWindow, limits: PrecursorLimits) -> _Sign:
    values = _within(window, window.nic_flaps, 3 * HOUR_S)
    return _Sign(
        "precursor.flapping", values >= limits.flaps, values, limits.flaps,
        "losses of its node's link in three hours", "", "drain the node",
        "its node's link is lost again and again; look at cable and transceiver",
    )  # fmt: skip


def _replaying(window: GpuWindow, limits: PrecursorLimits) -> _Sign:
    values = _within(window, window.pcie_replays, 30 * MINUTE_S)
    return _Sign(
        "precursor.replaying", values >= limits.replays, values, limits.replays,
        "PCIe replays in half an hour", "", "drain the node",
        "its PCIe link repeats itself; reseat it or its riser",
    )  # fmt: skip


def _climbing(window: GpuWindow, limits: PrecursorLimits) -> _Sign:
    hits, height_c = find_climbs(window, limits.climb)
    return _Sign(
        "precursor.climbing", hits, height_c, limits.climb.rise_c,
        "temperature above what power, hour and its past explain", "C", "drain the node",
        "it gets warmer and warmer at the same power; look at fan, paste and dust",
    )  # fmt: skip


def _within(window: GpuWindow, added: Floats, span_s: float) -> Floats:
    """Sum of the newest ``span_s`` at each row."""
    rows = max(1, round(span_s / window.every_s))
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(added))])
    ends = np.arange(1, len(sums))
    within: Floats = sums[ends] - sums[np.maximum(0, ends - rows)]
    return within


def _finding(window: GpuWindow, sign: _Sign, row: int) -> Finding:
    at = float(window.begin_s + row * window.every_s)
    value = round(float(sign.values[row]), 3)
    return Finding(
        rule_id=sign.rule_id, subject=Subject("gpu", window.gpu), severity="warning",
        evidence=(Evidence(sign.what, value, sign.unit, sign.limit, at),), action=sign.action,
        confidence=0.95, deterministic=False, at=at,
        words=f"GPU {window.gpu}: {sign.words} ({value:g} {sign.what}).",
    )  # fmt: skip
