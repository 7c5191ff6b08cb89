"""Disks, links and clocks of the nodes, by fixed rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloudshift_lab.health.finding import Action, Evidence, Finding, Severity, Subject
from cloudshift_lab.health.windows import ClockWindow, DiskWindow, Floats, LinkWindow

HOUR_S = 3600.0


@dataclass(frozen=True)
class HostLimits:
    """What is too much.

    Args:
        full_in_s: A disk that is full within this time at its present pace.
        least_free: Share of a disk that has to be free.
        slow_times: A write that takes so many times the usual time ...
        slow_s: ... and longer than this.
        flaps: Losses of a link in ``flaps_in_s``.
        flaps_in_s: Seconds.
        error_share: Broken packets of all; Ethernet and InfiniBand promise far fewer.
        clock_s: So far a node's clock may be off before rows and logs of nodes cannot be compared.
        clock_far_s: So far, and tokens and certificates fail.
    """

    full_in_s: float = 6 * HOUR_S
    least_free: float = 0.02
    slow_times: float = 5.0
    slow_s: float = 0.05
    flaps: float = 2.0
    flaps_in_s: float = 3 * HOUR_S
    error_share: float = 1e-5
    clock_s: float = 0.5
    clock_far_s: float = 30.0


def find_disk(window: DiskWindow, limits: HostLimits | None = None) -> tuple[Finding, ...]:
    """Not writable, full, soon full, or slow."""
    limits = limits or HostLimits()
    now = float(window.times_s[-1]) if len(window.times_s) else 0.0
    subject = Subject("disk", window.disk)
    if not window.is_writable:
        return (
            _found("disk.read_only", subject, now, Evidence("a write", "failed", at=now),
                   f"Disk {window.disk} takes no writes; drain the node and read its kernel log.",
                   severity="critical", action="drain the node", deterministic=True),
        )  # fmt: skip
    found = (_space(window, limits, subject, now), _latency(window, limits, subject, now))
    return tuple(each for each in found if each is not None)


def find_link(window: LinkWindow, limits: HostLimits | None = None) -> tuple[Finding, ...]:
    """Down, flapping, breaking packets, or slower than it should be."""
    limits = limits or HostLimits()
    now = float(window.times_s[-1]) if len(window.times_s) else 0.0
    subject, name = Subject("link", window.link), window.link
    found: list[Finding] = []
    if not window.is_up:
        found.append(
            _found("link.down", subject, now, Evidence("link", "down", at=now),
                   f"Link {name} is down; look at cable and switch port.",
                   severity="critical", action="drain the node", deterministic=True)
        )  # fmt: skip
    recent = window.times_s > now - limits.flaps_in_s
    downs = float(np.nansum(window.downs[recent]))
    if downs >= limits.flaps:
        found.append(
            _found("link.flapping", subject, now,
                   Evidence("losses", downs, "", limits.flaps, now),
                   f"Link {name} was lost {downs:.0f} times in "
                   f"{limits.flaps_in_s / HOUR_S:.0f} hours; look at cable and transceiver.")
        )  # fmt: skip
    packets, errors = float(np.nansum(window.packets)), float(np.nansum(window.errors))
    if packets > 0 and errors / packets > limits.error_share:
        found.append(
            _found("link.errors", subject, now,
                   Evidence("broken packets", errors / packets, "share", limits.error_share, now),
                   f"Link {name} breaks {errors / packets:.1e} of its packets; look at cable and "
                   "transceiver.")
        )  # fmt: skip
    if window.gbps is not None and window.rated_gbps and window.gbps < window.rated_gbps:
        found.append(
            _found("link.slow", subject, now,
                   Evidence("speed", window.gbps, "Gbit/s", window.rated_gbps, now),
                   f"Link {name} runs at {window.gbps:g} of {window.rated_gbps:g} Gbit/s; reseat "
                   "its cable.")
        )  # fmt: skip
    return tuple(found)


def find_clock_skew(window: ClockWindow, limits: HostLimits | None = None) -> tuple[Finding, ...]:
    """Nodes whose clock is off by more than the measurement can explain."""
    limits = limits or HostLimits()
    found = []
    for node, offset_s in sorted(window.offset_s.items()):
        sure_s = abs(offset_s) - abs(window.error_s.get(node, 0.0))
        if sure_s <= limits.clock_s:
            continue
        severity: Severity = "warning" if sure_s > limits.clock_far_s else "watch"
        ahead = "ahead" if offset_s > 0 else "behind"
        found.append(
            _found("clock.skew", Subject("node", node), window.now,
                   Evidence("clock is off by", round(offset_s, 3), "s", limits.clock_s, window.now),
                   f"The clock of node {node} is {abs(offset_s):.3g} s {ahead}; start chrony or "
                   "ntpd there.", severity=severity, action="watch")
        )  # fmt: skip
    return tuple(found)


def _space(window: DiskWindow, limits: HostLimits, subject: Subject, now: float) -> Finding | None:
    is_read = np.isfinite(window.free_bytes)
    if not is_read.any() or window.total_bytes <= 0:
        return None
    free = float(window.free_bytes[is_read][-1])
    share = free / window.total_bytes
    if share < limits.least_free:
        return _found(
            "disk.full", subject, now,
            Evidence("free", round(share, 4), "share", limits.least_free, now),
            f"Disk {window.disk} has {share:.1%} left; free some space, or the next save fails.",
            severity="critical",
        )  # fmt: skip
    left_s = _full_in_s(window.times_s[is_read], window.free_bytes[is_read])
    if left_s is None or left_s > limits.full_in_s:
        return None
    return _found(
        "disk.filling", subject, now,
        Evidence("full in", round(left_s), "s", limits.full_in_s, now),
        f"Disk {window.disk} is full in {left_s / HOUR_S:.1f} h at this pace; free some space.",
    )  # fmt: skip


def _full_in_s(times_s: Floats, free_bytes: Floats) -> float | None:
    """Seconds until nothing is free, from a straight line through the rows; None: it does not fill.

    At least ten rows are needed, and the line has to explain most of what happened, so that one
    large file written and deleted again is no trend.
    """
    if len(times_s) < 10:
        return None
    times = times_s - times_s[-1]
    spread = float(np.std(times))
    if spread == 0 or float(np.std(free_bytes)) == 0:
        return None
    match = float(np.corrcoef(times, free_bytes)[0, 1])
    slope = match * float(np.std(free_bytes)) / spread
    if slope >= 0 or match > -0.9:
        return None
    return float(free_bytes[-1]) / -slope


def _latency(
    window: DiskWindow, limits: HostLimits, subject: Subject, now: float
) -> Finding | None:
    tried = window.latency_s[np.isfinite(window.latency_s)]
    if len(tried) < 20:
        return None
    newest, usual = float(np.median(tried[-5:])), float(np.median(tried[:-5]))
    if newest <= max(limits.slow_s, limits.slow_times * usual):
        return None
    return _found(
        "disk.slow", subject, now,
        Evidence("time of a small write", round(newest, 4), "s", round(usual, 4), now),
        f"Disk {window.disk} needs {newest:.2g} s for a small write, usual is {usual:.2g} s; look "
        "for what else writes there.", severity="watch", action="watch",
    )  # fmt: skip


def _found(
    rule_id: str, subject: Subject, at: float, evidence: Evidence, words: str, *,
    severity: Severity = "warning", action: Action = "watch", deterministic: bool = False,
) -> Finding:  # fmt: skip
    return Finding(
        rule_id=rule_id, subject=subject, severity=severity, evidence=(evidence,), action=action,
        confidence=1.0 if deterministic else 0.8, deterministic=deterministic, words=words, at=at,
    )  # fmt: skip
