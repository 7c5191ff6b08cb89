"""What each XID of NVIDIA's driver asks for.

Source: NVIDIA's public XID catalogue, as compiled by leptonai/gpud (Apache-2.0) on 2025-10-29. Only
the first thing to do is kept here, in our words; codes that the catalogue calls unused are left
out, and a code that is not here asks for a human.
"""

from __future__ import annotations

from typing import NamedTuple

from cloudshift_lab.health.finding import Action, Severity


class Asks(NamedTuple):
    """What is done about a code, how bad it is, and whether it speaks of the machine for certain.

    ``is_machine`` False: the application may be the cause, or it is only a notice.
    """

    action: Action
    severity: Severity
    is_machine: bool


APPLICATION = Asks("restart the run", "watch", is_machine=False)
WATCH = Asks("watch", "watch", is_machine=False)
IGNORE = Asks("none", "info", is_machine=False)
RESET = Asks("reset the GPU", "critical", is_machine=True)
REBOOT = Asks("reboot the node", "critical", is_machine=True)
DRAIN = Asks("drain and reset the GPU", "critical", is_machine=True)
LINK = Asks("drain the node", "warning", is_machine=False)
SUPPORT = Asks("contact support", "watch", is_machine=False)

_CODES: tuple[tuple[Asks, tuple[int, ...]], ...] = (
    (
        APPLICATION,
        (
            8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80,
            *range(82, 87), 88, 89, 94, *range(96, 106), *range(126, 136), 139,
        ),
    ),
    (IGNORE, (14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153,
              157, 160, 161)),
    (RESET, (46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158)),
    (REBOOT, (79, 151)),
    (DRAIN, (48, 171, 172)),
    (LINK, (74, *range(144, 151))),
    (SUPPORT, (16, 54, 78, 142, 159, 162, 163, 164, 165, 166, 167, 168, 169, 170)),
)  # fmt: skip
ASKS: dict[int, Asks] = {code: asks for asks, codes in _CODES for code in codes}

NAMES: dict[int, str] = {
    13: "graphics engine exception", 31: "memory page fault", 43: "GPU stopped processing",
    45: "clean-up after an earlier error", 48: "double-bit ECC error",
    54: "auxiliary power is not connected", 62: "micro-controller halted",
    63: "memory row remapped", 64: "memory row could not be remapped", 69: "engine class error",
    74: "NVLink error", 79: "GPU has fallen off the bus", 92: "many single-bit ECC errors",
    94: "contained memory error", 95: "uncontained memory error", 109: "context switch timeout",
    119: "firmware (GSP) does not answer", 120: "firmware (GSP) error",
    136: "link training failed", 140: "unrecovered ECC error", 143: "GPU cannot be initialised",
    144: "NVLink SAW error", 145: "NVLink RLW error", 146: "NVLink TLW error",
    147: "NVLink TREX error", 148: "NVLink NVLPW error", 149: "NVLink NETIR error",
    150: "NVLink MSE error", 154: "recovery action changed", 156: "resource retired",
    157: "resource could not be retired", 158: "fatal timeout",
}  # fmt: skip
"""In our words, for those that are seen in training."""

RECOVERY: dict[int, Asks] = {
    0: IGNORE,
    1: RESET,
    2: REBOOT,
    3: Asks("drain the node", "critical", is_machine=True),
    4: DRAIN,
}
"""NVML's recovery actions: none, reset, reboot, drain (peer traffic), drain and reset."""
RECOVERY_NAMES = {0: "none", 1: "reset", 2: "reboot", 3: "drain peers", 4: "drain and reset"}
