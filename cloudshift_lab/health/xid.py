"""XID messages of NVIDIA's driver: from a line of the kernel's log to what it asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from cloudshift_lab.health.finding import Evidence, Finding, Subject
from cloudshift_lab.health.xid_table import ASKS, NAMES, RECOVERY, RESET, SUPPORT, WATCH, Asks

_XID = re.compile(
    r"NVRM:\s*Xid\s*\(\s*(?:PCI:)?(?P<pci>[0-9a-f]{4,8}:[0-9a-f]{1,2}:[0-9a-f]{1,2})(?:\.[0-9a-f])?"
    r"(?P<part>[^)]*)\)\s*:?\s*(?P<code>[0-9]{1,9})\b\s*[,:]?\s*(?P<text>.*)",
    re.IGNORECASE,
)
_PROCESS = re.compile(
    r"pid='?(?P<pid>[0-9]+|<unknown>)'?(?:\s*,\s*name='?(?P<name>[^,']*)'?)?,?\s*"
)
_UNIT = re.compile(
    r"(?P<unit>[A-Z][A-Z0-9_/]+)\s+(?P<fatal>Fatal|Nonfatal)\b.*?(?:Link\s+(?P<link>-?\d+))?"
)
_RECOVERY = re.compile(r"to\s+0x(?P<action>[0-9a-f]+)", re.IGNORECASE)
_NVLINK5 = range(144, 151)
_LONGEST = 300


class Xid(msgspec.Struct, frozen=True):
    """One message.

    Args:
        code: The XID.
        pci: Domain, bus and device as the driver writes them: ``0000:3b:00``.
        text: What follows the code.
        process: Id of the process it blames; None where it names none.
        is_fatal: What an NVLink message says of itself; None where it says nothing.
        recovery: Number of the recovery action it announces (154 only).
    """

    code: int
    pci: str
    text: str
    process: int | None = None
    is_fatal: bool | None = None
    recovery: int | None = None


def parse_xid(line: str) -> Xid | None:
    """Read one line of the kernel's log, whatever stands before the message; None: no XID."""
    match = _XID.search(line)
    if match is None:
        return None
    code, text = int(match["code"]), match["text"].strip()
    blamed = _PROCESS.match(text)
    process = int(blamed["pid"]) if blamed is not None and blamed["pid"].isdigit() else None
    unit = _UNIT.search(text) if code in _NVLINK5 else None
    recovery = _RECOVERY.search(text) if code == 154 else None
    return Xid(
        code, match["pci"], text[:_LONGEST], process,
        None if unit is None else unit["fatal"] == "Fatal",
        None if recovery is None else int(recovery["action"], 16),
    )  # fmt: skip


def asks(xid: Xid) -> Asks:
    """What a message asks for; a code that is not known asks for a human."""
    if xid.recovery is not None:
        return RECOVERY.get(xid.recovery, SUPPORT)
    if xid.is_fatal is not None:
        return RESET if xid.is_fatal else WATCH
    return ASKS.get(xid.code, SUPPORT)


def find_xids(lines: Sequence[tuple[float, str]], node: str) -> tuple[Finding, ...]:
    """One finding for each GPU and code in some lines of a node's kernel log.

    Args:
        lines: Time in seconds and text of each, oldest first.
        node: Whose log it is.
    """
    first: dict[tuple[str, int, int | None], tuple[float, Xid, int]] = {}
    for at, line in lines:
        xid = parse_xid(line)
        if xid is None:
            continue
        key = (xid.pci, xid.code, xid.recovery)
        begun, kept, num = first.get(key, (at, xid, 0))
        kept = xid if xid.is_fatal and not kept.is_fatal else kept
        first[key] = (begun, kept, num + 1)
    return tuple(_finding(at, xid, num, node) for at, xid, num in first.values())


def _finding(at: float, xid: Xid, num: int, node: str) -> Finding:
    wanted = asks(xid)
    name = NAMES.get(xid.code, xid.text[:60] or "not in our table")
    gpu = f"{node}/PCI:{xid.pci}"
    todo = {
        "none": "nothing has to be done.",
        "restart the run": "restart the run; look at the application if it comes again.",
    }.get(wanted.action, f"{wanted.action}.")
    return Finding(
        rule_id=f"xid.{xid.code}", subject=Subject("gpu", gpu), severity=wanted.severity,
        evidence=(
            Evidence("kernel log", xid.text or f"Xid {xid.code}", at=at),
            Evidence("times", num),
        ),
        action=wanted.action, confidence=1.0 if wanted.is_machine else 0.8,
        deterministic=wanted.is_machine, at=at,
        words=f"GPU {gpu} reports XID {xid.code} ({name}): {todo}",
    )  # fmt: skip
