"""What somebody has to do to a machine: a request that never changes, and how far it is."""

from __future__ import annotations

from typing import Literal

import msgspec

MaintenanceState = Literal["open", "acknowledged", "resolved"]
NodeAction = Literal["look at", "drain", "reset", "reboot", "replace"]
NODE_ACTIONS: tuple[NodeAction, ...] = ("look at", "drain", "reset", "reboot", "replace")
CORDONING: frozenset[str] = frozenset({"drain", "reset", "reboot", "replace"})
"""While one of these is asked for, nothing new is started on the machine."""


class Exhibit(msgspec.Struct, frozen=True):
    """One row of evidence: what was seen, with its unit, and the limit it is held against.

    ``at``: a step or seconds, as the finding has it; None where it has no time.
    """

    what: str
    value: str
    limit: str = ""
    at: float | None = None


class MaintenanceAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A request before it has a number.

    Args:
        node: The machine.
        action: What is asked for.
        words: What happened, one line.
        by: Who asks: a person or a rule.
        key: Equal for requests about the same thing, of which one is open at a time; empty: made
            from ``node`` and ``action``.
        run_id: The run that met it; empty: none.
        evidence: What was seen.
        within_s: Until when it should be done, seconds from now; None: nothing presses.
    """

    node: str
    action: NodeAction
    words: str
    by: str
    key: str = ""
    run_id: str = ""
    evidence: tuple[Exhibit, ...] = ()
    within_s: float | None = None


class MaintenanceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """As it was opened; nothing of it ever changes. Times are wall-clock seconds."""

    request_id: str
    key: str
    node: str
    action: NodeAction
    words: str
    by: str
    opened_at: float
    run_id: str = ""
    evidence: tuple[Exhibit, ...] = ()
    deadline: float | None = None


class MaintenanceMark(msgspec.Struct, frozen=True):
    """Somebody took a request on, or has done it; ``words`` say what was done."""

    state: MaintenanceState
    by: str
    words: str
    at: float = 0.0


class Delivery(msgspec.Struct, frozen=True):
    """Whether a sink has the newest state of a request; ``trouble`` says why not yet."""

    sink: str
    is_there: bool
    trouble: str = ""


class MaintenanceView(msgspec.Struct, frozen=True):
    """A request as every surface shows it.

    ``times_seen``: how often the same was asked for while it was open.
    """

    request: MaintenanceRequest
    state: MaintenanceState
    marks: tuple[MaintenanceMark, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    times_seen: int = 1


class PassportEntry(msgspec.Struct, frozen=True):
    """Something that happened to a machine."""

    at: float
    what: Literal["lost", "opened", "acknowledged", "resolved"]
    words: str
    run_id: str = ""
    request_id: str = ""


class Passport(msgspec.Struct, frozen=True):
    """A machine's history, oldest first. ``is_cordoned``: nothing new is started there."""

    node: str
    is_cordoned: bool
    entries: tuple[PassportEntry, ...] = ()
