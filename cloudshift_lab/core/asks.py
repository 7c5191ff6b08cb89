"""What people ask of a move: where to, how to close the gap, what to do when nodes are missing."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.plan import ClosingKind, MissingNodesPolicy, Plan

ClosingWish = Literal["auto"] | ClosingKind
Carrier = Literal["pull", "push"]
Noticed = Literal["source", "target"]


class MoveAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A move as asked for; None leaves a choice to the conductor.

    ``expires_s``: how long it may be approved. ``rehearse``: steps that the target computes before
    the commit. ``min_nodes``: how few a shrunk run may have. ``elsewhere``: other targets, in
    order. ``approvals``: different people or policies who must approve. ``limit_micro_usd``: what
    the move itself may cost. ``tolerance``: how far a rehearsed loss may be from the source's,
    relative; 0 is bit by bit, None what is usual. ``carrier``: whether the target pulls or the
    source pushes.
    """

    to: str
    expires_s: float | None = None
    closing: ClosingWish = "auto"
    rehearse: int | None = None
    missing_nodes: MissingNodesPolicy = "roll-back"
    min_nodes: int = 1
    elsewhere: tuple[str, ...] = ()
    approvals: int | None = None
    limit_micro_usd: int | None = None
    tolerance: float | None = None
    carrier: Carrier = "pull"


def refuse_unused_places(to: str, elsewhere: tuple[str, ...], policy: str | None) -> None:
    """Raise UsageError for other places that a policy for missing nodes would never try.

    Args:
        to: The first place.
        elsewhere: The others.
        policy: What happens when nodes are missing; None: the others are tried.
    """
    if elsewhere and policy not in (None, "elsewhere"):
        places = ", ".join((to, *elsewhere))
        raise UsageError(
            f"with missing nodes '{policy}' only the first of {places} would be tried; "
            "name one place, or choose 'elsewhere'"
        )


class NoticeAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A machine is going to be taken away ``within_s`` seconds, at one side of the open move.

    Without a move ``source`` is where the run is.
    """

    within_s: float
    side: Noticed = "source"


class NoticeView(msgspec.Struct, frozen=True, kw_only=True):
    """What will be done before a machine goes, and what will not; times are wall-clock seconds.

    ``finishes``: everything that is needed gets through in time. ``lost_steps``: steps that are
    likely to be computed again. ``migration_id``: the open move that it concerns.
    """

    run_id: str
    side: Noticed
    at: float
    deadline: float
    does: tuple[str, ...] = ()
    finishes: bool = True
    lost_steps: int = 0
    words: str = ""
    migration_id: str | None = None


class FuturesAsk(msgspec.Struct, frozen=True, kw_only=True):
    """Simulate a plan ``num`` times; what was measured on this very run, None where nothing was.

    ``step_s``: seconds per step of the source. ``state_bytes``: the raw state. ``bytes_per_s``: of
    the link between the two stores. ``save_s``, ``provision_s``, ``restore_s``: durations.
    ``node_mtbf_h``: hours between failures of one node, at the source and at the target.
    ``price_micro_usd_per_h``: of all nodes, at the source and at the target.
    """

    plan: Plan
    step_s: float | None = None
    state_bytes: int = 0
    bytes_per_s: float | None = None
    save_s: float | None = None
    provision_s: float | None = None
    restore_s: float | None = None
    node_mtbf_h: tuple[float, float] | None = None
    price_micro_usd_per_h: tuple[int, int] = (0, 0)
    num: int = 1000
    seed: int = 0
