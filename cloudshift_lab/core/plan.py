"""A proposed move, its bill, the decision on it, and how far it got."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.placement import Placement

BillKind = Literal["compute", "egress", "requests", "transfer", "pause", "overlap", "note"]


class BillItem(msgspec.Struct, frozen=True):
    """One line of a bill: an amount (< 0 is a saving), and the arithmetic it came from."""

    label: str
    amount_micro_usd: int
    basis: str
    source: str
    kind: BillKind
    as_of: str = ""
    simulated: bool = False


class Bill(msgspec.Struct, frozen=True):
    """The itemised cost of a move against staying.

    Invariant: ``total_micro_usd`` is the sum of the items' amounts.
    ``break_even_s``: seconds of further training after which the move has paid for itself;
    None when it never does.
    """

    items: tuple[BillItem, ...]
    total_micro_usd: int
    one_off_micro_usd: int
    saving_micro_usd_per_h: int
    break_even_s: float | None
    pause_s: float
    transfer_bytes: int
    simulated: bool
    reasons: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """The exact move proposed. ``digest`` is blake3 over all other fields."""

    migration_id: str
    run_id: str
    source: Placement
    target: Placement
    source_url: str
    target_url: str
    generation: int
    bill: Bill
    verdict: Literal["move", "stay"]
    created_at: float
    expires_at: float
    digest: str = ""


Verdict = Literal["approve", "reject"]


class Decision(msgspec.Struct, frozen=True):
    """A person's or a policy's answer, bound to the plan that was shown."""

    decision_id: str
    plan_digest: str
    verdict: Verdict
    by: str
    at: float = 0.0


Phase = Literal[
    "proposed",
    "approved",
    "provisioning",
    "precopying",
    "draining",
    "copying",
    "verifying",
    "committing",
    "committed",
    "resumed",
    "source_retired",
    "rejected",
    "expired",
    "rolling_back",
    "rolled_back",
]
FINAL_PHASES: frozenset[str] = frozenset({"source_retired", "rejected", "expired", "rolled_back"})


class PhaseTime(msgspec.Struct, frozen=True):
    """When a phase was entered, wall-clock seconds, with what was measured in it."""

    phase: Phase
    at: float
    detail: str = ""


class MigrationView(msgspec.Struct, frozen=True):
    """One move as every surface shows it."""

    migration_id: str
    run_id: str
    run_name: str
    phase: Phase
    plan: Plan
    timeline: tuple[PhaseTime, ...] = ()
    decision: Decision | None = None
    error: str | None = None
    sealed_step: int | None = None
    bytes_moved: int = 0
    bytes_state: int = 0
    pause_s: float | None = None
    receipt: str | None = None
    as_of: float = 0.0
