"""What a run has cost: entries that sum exactly, and the figures that are told beside them."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import BillKind, Spread

CostKind = Literal["compute", "egress", "requests", "idle", "overhead", "lost_work", "overlap"]
COST_KINDS: tuple[CostKind, ...] = (
    "compute", "overhead", "idle", "lost_work", "overlap", "egress", "requests",
)  # fmt: skip


class CostEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One amount of a ledger: what one machine's time, or one move's bytes, came to.

    Args:
        kind: What it counts as.
        part: What the time went into, in words: ``training``, ``saving``, ``copying the state``.
        micro_usd: The amount.
        begin: Of the time it is for, wall-clock seconds.
        end: Of that time.
        seconds: Paid within it, of one node; 0 for bytes and requests.
        placement: Whose price it is; of bytes, where they came from.
        generation: Of the attempt; 0 for bytes and requests.
        migration_id: The move it belongs to; empty: none.
        micro_usd_per_h: Of all nodes; 0 for bytes and requests.
        quantity: Bytes carried, or requests made.
        basis: The arithmetic in words.
        source: Where the price comes from.
        simulated: Nobody sends a bill for it.
    """

    kind: CostKind
    part: str
    micro_usd: int
    begin: float
    end: float
    placement: Placement
    seconds: float = 0.0
    generation: int = 0
    migration_id: str = ""
    micro_usd_per_h: int = 0
    quantity: int = 0
    basis: str = ""
    source: str = ""
    simulated: bool = False


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """A run's cost so far.

    Invariant: ``total_micro_usd`` is the exact sum of ``entries`` and of ``by_kind``.

    Args:
        entries: In order of time.
        by_kind: The same by what it counts as.
        total_micro_usd: All of it.
        steps: Steps that were done and kept.
        tokens: In them; None where the script does not count tokens.
        micro_usd_per_million_tokens: All costs over these tokens; None before the first.
    """

    entries: tuple[CostEntry, ...]
    by_kind: dict[str, int]
    total_micro_usd: int
    steps: int = 0
    tokens: int | None = None
    micro_usd_per_million_tokens: int | None = None


class Finish(msgspec.Struct, frozen=True):
    """What a run will have cost when it ends, and when that is: P10, P50, P90.

    ``step``: the one it is to reach. ``finish_at``: wall-clock seconds. ``basis``: from what.
    """

    step: int
    total_micro_usd: Spread
    finish_at: Spread
    basis: str


class Otherwise(msgspec.Struct, frozen=True, kw_only=True):
    """What the same work would have cost in another way, at the prices that were recorded.

    Args:
        name: ``never moved``, ``always cheapest`` or ``perfect foresight``.
        micro_usd: What it would have cost.
        regret_micro_usd: What the run cost more than that; negative: what it saved.
        end: When that work would have been done, wall-clock seconds.
        moves: How often it would have moved.
        basis: Where it would have been, and what is assumed.
    """

    name: str
    micro_usd: int
    regret_micro_usd: int
    end: float
    moves: int
    basis: str


class BillCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a move's bill beside the ledger.

    Args:
        migration_id: The move.
        kind: The line's.
        label: What it is for.
        forecast_micro_usd: As it was billed before the decision.
        settled_micro_usd: The same line with the bytes and durations that were measured.
        ledger_micro_usd: What the ledger says.
    """

    migration_id: str
    kind: BillKind
    label: str
    forecast_micro_usd: int
    settled_micro_usd: int
    ledger_micro_usd: int

    @property
    def apart(self) -> float | None:
        """How far the settled line is from the ledger, relative to it; None where both are 0."""
        if not self.ledger_micro_usd:
            return None if not self.settled_micro_usd else float("inf")
        return self.settled_micro_usd / self.ledger_micro_usd - 1


class Alarm(msgspec.Struct, frozen=True):
    """A budget's level was reached: ``percent`` of ``budget_micro_usd`` was spent at ``at``."""

    percent: int
    at: float
    spent_micro_usd: int
    budget_micro_usd: int


class BudgetAsk(msgspec.Struct, frozen=True):
    """A budget as asked for, micro-dollars."""

    micro_usd: int


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands with its budget.

    Args:
        micro_usd: The budget.
        spent_micro_usd: Of it.
        share: The same as a share, above 1 when it is overdrawn.
        lasts_s: Seconds until the run is stopped at its present price; None: it costs nothing now.
        alarms: That were raised, oldest first.
        words: All that in a sentence.
    """

    micro_usd: int
    spent_micro_usd: int
    share: float
    lasts_s: float | None = None
    alarms: tuple[Alarm, ...] = ()
    words: str = ""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A run's ledger with what is told beside it.

    Args:
        run_id: The run.
        name: What people call it.
        ledger: What it has cost.
        finish: What it will have cost; None: how long it goes on is not known.
        otherwise: The same work in other ways; empty before there is any.
        checks: Every line of its finished moves' bills beside the ledger.
        notes: What a reader should know of these figures.
    """

    run_id: str
    name: str
    ledger: Ledger
    finish: Finish | None = None
    otherwise: tuple[Otherwise, ...] = ()
    checks: tuple[BillCheck, ...] = ()
    notes: tuple[str, ...] = ()
