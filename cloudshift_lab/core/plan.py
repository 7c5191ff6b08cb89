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


ClosingKind = Literal["copy", "replay"]


class Closing(msgspec.Struct, frozen=True):
    """One exact way to close the gap between what the target has and the sealed step.

    ``copy`` carries the bytes of the sealed step that the target lacks; ``replay`` has the target
    repeat the steps since its copy was taken, bit by bit, and prove the result by its hashes.
    ``pause_s``: until the first step that the run had not done yet. ``still_s``: how long no
    optimizer step runs anywhere. ``num_bytes``: on the wire, all rounds together.
    """

    kind: ClosingKind
    pause_s: float
    still_s: float
    num_bytes: int
    replayed_steps: int = 0
    basis: str = ""


MissingNodesPolicy = Literal["roll-back", "wait", "shrink", "elsewhere"]


class Fallback(msgspec.Struct, frozen=True):
    """Another place that a move may go to when the first one does not come up."""

    placement: Placement
    url: str


class Plan(msgspec.Struct, frozen=True):
    """The exact move proposed. ``digest`` is blake3 over all other fields.

    ``closings``: every way that was weighed; ``closing`` is the chosen one's kind.
    ``rehearsal_steps``: steps that the target computes before the commit, each loss compared with
    the source's; ``tolerance`` relative, 0 is bit by bit. ``missing_nodes`` says what happens when
    only some nodes come up, ``min_nodes`` how few a shrunk run may have, ``fallbacks`` where else
    to go. ``limit_micro_usd``: what the move itself may cost; 0 when nothing is priced.
    ``approvals_needed``: different people (or policies) who must approve. ``carrier``: whether the
    target pulls the bytes from the source's store or the source's agent pushes them.
    """

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
    closing: ClosingKind = "copy"
    closings: tuple[Closing, ...] = ()
    rehearsal_steps: int = 0
    tolerance: float = 0.0
    missing_nodes: MissingNodesPolicy = "roll-back"
    min_nodes: int = 1
    fallbacks: tuple[Fallback, ...] = ()
    limit_micro_usd: int = 0
    approvals_needed: int = 1
    carrier: Literal["pull", "push"] = "pull"


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
    "rehearsing",
    "asking",
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


class Spread(msgspec.Struct, frozen=True):
    """A quantity over many simulated futures: its 10th, 50th and 90th percentile."""

    p10: float
    p50: float
    p90: float


class Futures(msgspec.Struct, frozen=True):
    """What happened in ``num`` simulated futures of a plan, before anybody decides on it.

    ``pause_s`` is of those that arrived, None when none did.
    ``rolled_back`` and ``lost_steps`` are shares of futures, 0 to 1. ``basis`` says what was drawn
    from what. Always simulated, and shown so.
    """

    num: int
    pause_s: Spread | None
    cost_micro_usd: Spread
    finish_s: Spread
    rolled_back: float
    lost_steps: float
    basis: str


class Going(msgspec.Struct, frozen=True):
    """How far the pending effect of a move is; None of a number means that it is not known."""

    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    detail: str = ""


class MigrationView(msgspec.Struct, frozen=True):
    """One move as every surface shows it.

    ``approvals`` are all that count so far, ``decision`` the one that settled it. ``partial`` says
    what did not move, None when everything did. ``notice_s``: seconds left of a forced stop.
    ``closing``: how the gap is closed in fact, the plan's is the forecast. ``apart``: the largest
    relative difference of the rehearsed losses, at ``apart_step``; None: none differed.
    ``waiting``: why the run's own rule has not decided yet; empty when it has, or when it asks.
    """

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
    approvals: tuple[Decision, ...] = ()
    futures: Futures | None = None
    going: Going | None = None
    partial: str | None = None
    notice_s: float | None = None
    still_s: float | None = None
    waiting: str = ""
    closing: ClosingKind = "copy"
    apart: float | None = None
    apart_step: int | None = None
