"""What can happen to a saga, and what a saga can ask for; every value can go into a journal."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.plan import Decision

EffectName = Literal[
    "provision", "precopy", "drain", "copy", "verify", "commit", "go", "retire",
    "cancel", "resume", "release",
]  # fmt: skip


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


class EffectDone(msgspec.Struct, frozen=True, tag="done"):
    """An effect happened.

    ``step`` and ``manifest_digest`` are the sealed step (``drain``); ``seq`` the log position of
    the handover (``commit``); ``step_at`` the wall-clock end of the source's last step (``drain``)
    or of the target's first (``go``); ``num_bytes`` what crossed between the stores.
    """

    effect: EffectName
    at: float
    step: int | None = None
    manifest_digest: str | None = None
    num_bytes: int = 0
    seq: int | None = None
    detail: str = ""
    step_at: float | None = None


class EffectFailed(msgspec.Struct, frozen=True, tag="failed"):
    """An effect did not happen, or nobody knows whether it did.

    ``error_kind`` is the class name of a ``CloudshiftError``. The saga assumes the worst of every
    kind: only the answer of ``cancel`` tells whether a failed ``commit`` had landed. ``cancel``
    answers ``Fenced`` exactly when the handover of *this* migration is in the log.
    """

    effect: EffectName
    at: float
    error_kind: str
    message: str


Event = Decided | Expired | Aborted | EffectDone | EffectFailed
