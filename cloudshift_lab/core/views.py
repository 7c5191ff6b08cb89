"""Answers of the conductor that are neither a run nor a migration."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.costs import Account, Budget
from cloudshift_lab.core.run import SaveStats


class Health(msgspec.Struct, frozen=True):
    """The conductor's answer to ``GET /v1/health``."""

    version: str
    pid: int
    started_at: float
    home: str


class Target(msgspec.Struct, frozen=True):
    """One place that can be named after ``--on`` or ``--to``, with its cheapest price."""

    target: str
    title: str
    price_micro_usd_per_h: int
    simulated: bool
    note: str = ""


class Move(msgspec.Struct, frozen=True):
    """A finished or running move, to be marked in a chart."""

    migration_id: str
    at: float
    step: int | None
    source: str
    target: str


class Series(msgspec.Struct, frozen=True):
    """A run's curves, bucketed to at most the asked number of points; columns of equal length."""

    run_id: str
    at: tuple[float, ...] = ()
    step: tuple[int, ...] = ()
    loss: tuple[float | None, ...] = ()
    tokens_per_s: tuple[float | None, ...] = ()
    generation: tuple[int, ...] = ()
    cost_at: tuple[float, ...] = ()
    cost_usd: tuple[float, ...] = ()
    usd_per_h: tuple[float, ...] = ()
    moves: tuple[Move, ...] = ()
    simulated: bool = False


class CostLine(msgspec.Struct, frozen=True):
    """What one attempt (or one transfer) of a run has cost so far."""

    label: str
    target: str
    amount_micro_usd: int
    basis: str
    simulated: bool


class CostView(msgspec.Struct, frozen=True):
    """``total_micro_usd`` is the exact sum of the lines.

    ``budget``: how the run stands with it, None without one. ``account``: its ledger and what is
    told beside it, where that was asked for.
    """

    run_id: str
    lines: tuple[CostLine, ...]
    total_micro_usd: int
    price_micro_usd_per_h: int
    simulated: bool
    as_of: float
    saves: SaveStats | None = None
    budget: Budget | None = None
    account: Account | None = None


class Changes(msgspec.Struct, frozen=True):
    """Answer of the long poll: the version grew, so fetch again."""

    version: int


class Problem(msgspec.Struct, frozen=True):
    """An error as it crosses HTTP: ``kind`` is the error's class name."""

    kind: str
    message: str
    action: str


class Check(msgspec.Struct, frozen=True):
    """One line of ``doctor``: ``advice`` says what to do when ``ok`` is False."""

    name: str
    ok: bool
    detail: str
    advice: str = ""
