"""What NVML says of a GPU right now, held against fixed rules."""

from __future__ import annotations

import msgspec

from cloudshift_lab.health.finding import Evidence, Finding, Subject
from cloudshift_lab.health.xid_table import DRAIN, RECOVERY, RECOVERY_NAMES, SUPPORT, WATCH, Asks

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x08, 0x20, 0x40, 0x80
"""Bits of NVML's clocks event reasons (nvml.h)."""
NEAR_C = 3.0
"""So close below its slowdown temperature a GPU counts as too hot."""
_REPLACE = Asks("replace the node", "critical", is_machine=True)
_PENDING = Asks("reset the GPU", "warning", is_machine=True)
_REPAIR = Asks("drain the node", "warning", is_machine=False)


class GpuSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. None: this GPU or driver does not tell.

    Args:
        gpu: Its name: ``node-7/PCI:0000:3b:00``.
        at: Seconds.
        ecc_uncorrected: Uncorrected memory errors since the driver was loaded.
        remap_pending: Whether a remapped row waits for a reset.
        remap_failed: Whether a row could not be remapped.
        throttle_bits: Clocks event reasons.
        recovery_action: What the driver asks for (570 and newer).
        temp_c: Of the core.
        slowdown_c: Where it slows itself down.
        pcie_width: Lanes in use.
        pcie_width_max: Lanes that card and slot both have.
    """

    gpu: str
    at: float
    ecc_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    throttle_bits: int | None = None
    recovery_action: int | None = None
    temp_c: float | None = None
    slowdown_c: float | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None


def judge_snapshot(now: GpuSnapshot, before: GpuSnapshot | None = None) -> tuple[Finding, ...]:
    """Everything one reading shows.

    Args:
        now: The reading.
        before: An earlier one of the same GPU: counters that have not grown since say nothing.
            None: all that was counted is news.
    """
    found = (
        _recovery(now), _uncorrected(now, before), _remap(now), _throttled(now), _hot(now),
        _narrow(now),
    )  # fmt: skip
    return tuple(each for each in found if each is not None)


def _recovery(now: GpuSnapshot) -> Finding | None:
    if not now.recovery_action:
        return None
    wanted = RECOVERY.get(now.recovery_action, SUPPORT)
    name = RECOVERY_NAMES.get(now.recovery_action, f"number {now.recovery_action}")
    return _found(
        now, "nvml.recovery", wanted,
        Evidence("recovery action", now.recovery_action, "", 0, now.at),
        f"the driver asks for a recovery ({name}): {wanted.action}.",
    )  # fmt: skip


def _uncorrected(now: GpuSnapshot, before: GpuSnapshot | None) -> Finding | None:
    then = 0 if before is None else before.ecc_uncorrected or 0
    added = (now.ecc_uncorrected or 0) - then
    if added <= 0:
        return None
    return _found(
        now, "nvml.ecc", DRAIN,
        Evidence("uncorrected memory errors", added, "", 0, now.at),
        f"{added} memory errors that ECC could not correct; drain and reset it, and go back to a "
        "checkpoint from before.",
    )  # fmt: skip


def _remap(now: GpuSnapshot) -> Finding | None:
    if now.remap_failed:
        return _found(
            now, "nvml.remap_failed", _REPLACE,
            Evidence("row remapping failed", 1, "", 0, now.at),
            "a broken memory row could not be replaced: it has no spare rows left; replace it.",
        )  # fmt: skip
    if now.remap_pending:
        return _found(
            now, "nvml.remap_pending", _PENDING,
            Evidence("row remapping pending", 1, "", 0, now.at),
            "a memory row is replaced at the next reset; reset it between two runs.",
        )  # fmt: skip
    return None


def _throttled(now: GpuSnapshot) -> Finding | None:
    bits = now.throttle_bits or 0
    if bits & (HW_THERMAL | HW_SLOWDOWN | HW_POWER_BRAKE):
        why = (
            "power brake" if bits & HW_POWER_BRAKE else "heat" if bits & HW_THERMAL else "hardware"
        )
        return _found(
            now, "nvml.slowdown", _REPAIR,
            Evidence("clocks event reasons", f"{bits:#x}", at=now.at),
            f"its clocks are held down by the hardware ({why}); look at cooling and power.",
        )  # fmt: skip
    if bits & SW_THERMAL:
        return _found(
            now, "nvml.warm", WATCH,
            Evidence("clocks event reasons", f"{bits:#x}", at=now.at),
            "the driver holds its clocks down for heat; look at cooling.",
        )  # fmt: skip
    return None


def _hot(now: GpuSnapshot) -> Finding | None:
    if now.temp_c is None or now.slowdown_c is None or now.temp_c < now.slowdown_c - NEAR_C:
        return None
    return _found(
        now, "nvml.hot", _REPAIR,
        Evidence("core temperature", now.temp_c, "C", now.slowdown_c, now.at),
        f"{now.temp_c:.0f} C, and it slows down at {now.slowdown_c:.0f} C; look at cooling.",
    )  # fmt: skip


def _narrow(now: GpuSnapshot) -> Finding | None:
    if not now.pcie_width or not now.pcie_width_max or now.pcie_width >= now.pcie_width_max:
        return None
    return _found(
        now, "nvml.pcie_width", _REPAIR,
        Evidence("PCIe lanes", now.pcie_width, "", now.pcie_width_max, now.at),
        f"{now.pcie_width} of {now.pcie_width_max} PCIe lanes; reseat it or its riser.",
    )  # fmt: skip


def _found(now: GpuSnapshot, rule_id: str, wanted: Asks, evidence: Evidence, said: str) -> Finding:
    return Finding(
        rule_id=rule_id, subject=Subject("gpu", now.gpu), severity=wanted.severity,
        evidence=(evidence,), action=wanted.action, confidence=1.0 if wanted.is_machine else 0.8,
        deterministic=wanted.is_machine, words=f"GPU {now.gpu}: {said}", at=now.at,
    )  # fmt: skip
