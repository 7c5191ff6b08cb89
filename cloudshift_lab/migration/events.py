"""What can happen to a saga, and what a saga can ask for; every value can go into a journal.

``num_bytes`` of an event that ends the pending effect early is what that effect had carried by
then: it was paid for, though it came to nothing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.plan import Bill, Decision

EffectName = Literal[
    "provision", "precopy", "rehearse", "drain", "copy", "verify", "catch_up", "commit", "go",
    "retire", "cancel", "resume", "release",
]  # fmt: skip
SideName = Literal["source", "target"]


class Effect(msgspec.Struct, frozen=True):
    """Something the driver must do. ``key`` is its idempotency key: the same at every try."""

    name: EffectName
    key: str


class Decided(msgspec.Struct, frozen=True, tag="decided"):
    """A decision was taken; the saga ignores one that ``check_decision`` would refuse."""

    decision: Decision
    at: float


class Expired(msgspec.Struct, frozen=True, tag="expired"):
    """Nobody decided in time."""

    at: float


class Aborted(msgspec.Struct, frozen=True, tag="aborted"):
    """The move is no longer wanted (the run is being stopped); too late once commit began."""

    at: float
    message: str = ""
    num_bytes: int = 0


class Noticed(msgspec.Struct, frozen=True, tag="noticed"):
    """The machine of one side will be taken away at ``deadline`` (wall-clock seconds)."""

    side: SideName
    at: float
    deadline: float
    num_bytes: int = 0


class Overspent(msgspec.Struct, frozen=True, tag="overspent"):
    """The move has cost ``micro_usd`` so far, more than the plan's limit allows."""

    at: float
    micro_usd: int
    num_bytes: int = 0


class EffectDone(msgspec.Struct, frozen=True, tag="done"):
    """An effect happened.

    ``step`` and ``manifest_digest`` are the sealed step (``drain``); ``seq`` the log position of
    the handover (``commit``). ``step_at`` is wall-clock time: the end of the source's last step
    (``drain``), of the last step that was repeated (``catch_up``), of the first step that the run
    had not done yet (``go``, ``resume``). ``num_bytes`` is what crossed between the stores, at
    ``bytes_per_s``. ``step_s``: a rehearsed step's median duration; ``bill``: the plan's bill with
    what was measured by then, ``limit_micro_usd`` what the move may cost if it is approved, None:
    as before, and ``ask_s`` how long that question stands, None: ten minutes. ``lost_steps``:
    executed after the sealed one, and lost (``drain``, when the source's machine went before it
    was drained). ``apart``: the largest relative
    difference of the losses that a rehearsal compared, at ``apart_step``; None: none differed.
    """

    effect: EffectName
    at: float
    step: int | None = None
    manifest_digest: str | None = None
    num_bytes: int = 0
    seq: int | None = None
    detail: str = ""
    step_at: float | None = None
    bytes_per_s: float | None = None
    step_s: float | None = None
    bill: Bill | None = None
    lost_steps: int = 0
    apart: float | None = None
    apart_step: int | None = None
    limit_micro_usd: int | None = None
    ask_s: float | None = None


class EffectFailed(msgspec.Struct, frozen=True, tag="failed"):
    """An effect did not happen, or nobody knows whether it did.

    ``error_kind`` is the class name of a ``CloudshiftError``. The saga assumes the worst of every
    kind: only the answer of ``cancel`` tells whether a failed ``commit`` had landed. ``cancel``
    answers ``Fenced`` exactly when the handover of *this* migration is in the log. ``nodes_up``
    comes with ``NodesMissing``: how many of the target's nodes are there.
    """

    effect: EffectName
    at: float
    error_kind: str
    message: str
    nodes_up: int | None = None
    num_bytes: int = 0


Event = Decided | Expired | Aborted | Noticed | Overspent | EffectDone | EffectFailed
