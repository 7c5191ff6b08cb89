"""What a conductor asks of a node agent and what the agent answers, both through the bucket."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.run import SaveStats

OrderKind = Literal[
    "precopy", "rehearse", "save", "drain", "copy", "verify", "catch_up", "go", "resume",
    "retire", "stop", "notice",
]  # fmt: skip


class Order(msgspec.Struct, frozen=True):
    """One instruction, at ``runs/<run>/inbox/<generation>/<n>.json``, created once.

    ``order_id`` makes it idempotent: the conductor looks for it before it writes another, and the
    agent never obeys it twice. ``step`` is a sealed step where one is needed. ``num_steps``: how
    many to rehearse; ``tolerance`` relative, of their losses. ``within_s``: a notice, seconds until
    the machine goes, counted from the order's arrival. ``replay``: keep the rehearsing ranks, they
    will catch up with the sealed step. ``standalone``: save without deltas to an earlier step.
    ``to_cloud`` and ``to_url``: push there instead of pulling.
    """

    order_id: str
    kind: OrderKind
    at: float
    step: int | None = None
    manifest_digest: str | None = None
    num_steps: int = 0
    tolerance: float = 0.0
    within_s: float | None = None
    replay: bool = False
    standalone: bool = False
    to_cloud: str | None = None
    to_url: str | None = None


class OrderResult(msgspec.Struct, frozen=True):
    """How far an order got. ``error_kind`` is the class name of a ``CloudshiftError``.

    ``total_bytes``, ``bytes_per_s`` and ``eta_s`` are of a copy under way, ``bytes_per_s`` also of
    a finished one; ``step_s`` is a rehearsed step's median duration, seconds. ``step_at``: when
    the last step that was repeated ended, wall-clock seconds. ``apart``: the largest relative
    difference of losses that were compared, at ``apart_step``; None: none differed.
    """

    state: Literal["running", "done", "failed"]
    detail: str = ""
    num_bytes: int = 0
    step: int | None = None
    manifest_digest: str | None = None
    error_kind: str | None = None
    error: str | None = None
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    step_s: float | None = None
    step_at: float | None = None
    apart: float | None = None
    apart_step: int | None = None


STARTED_AGAIN = "they are started again after step"
"""How an agent says in its warnings that its ranks failed and begin anew; the step follows."""

AgentState = Literal[
    "starting", "standby", "running", "draining", "drained", "stopped", "finished", "failed",
    "retired", "fenced",
]  # fmt: skip


class AgentStatus(msgspec.Struct, frozen=True):
    """The agent's own word, at ``runs/<run>/status/<generation>.json``, overwritten by it alone.

    ``beat`` grows with every write: an observer judges liveness by its own monotonic clock.
    ``first_step_at`` is the wall-clock time at which this attempt's first step ended,
    ``last_step_at`` that of its newest. ``losses``: the newest steps of rank 0 with their exact
    losses, oldest first, at most 64; of a standby those that it rehearses. ``step_s``: a step's
    median duration. ``nodes_up``: nodes whose ranks are ready or running. ``notice_until``:
    wall-clock time at which the machine goes, once that was said, and ``notice_from`` by what, when
    the machine heard it itself.
    """

    run_id: str
    generation: int
    state: AgentState
    beat: int
    at: float
    results: dict[str, OrderResult] = {}
    step: int | None = None
    loss: float | None = None
    staged_step: int | None = None
    committed_step: int | None = None
    committed_at: float | None = None
    state_bytes: int = 0
    stored_bytes: int = 0
    first_step_at: float | None = None
    last_step_at: float | None = None
    error: str | None = None
    error_rank: int | None = None
    traceback: str | None = None
    warnings: tuple[str, ...] = ()
    saves: SaveStats = SaveStats()
    losses: tuple[tuple[int, float], ...] = ()
    step_s: float | None = None
    nodes_up: int = 1
    notice_until: float | None = None
    notice_from: str = ""


def inbox_key(run_id: str, generation: int, number: int) -> str:
    """Where order ``number`` for one generation's agent lies."""
    return f"runs/{run_id}/inbox/{generation}/{number:06d}.json"


def status_key(run_id: str, generation: int) -> str:
    """Where one generation's agent tells how it is."""
    return f"runs/{run_id}/status/{generation}.json"
