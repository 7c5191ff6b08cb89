"""The two attempts of a move, as orders and answers reach them through their buckets."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloudshift_lab.conductor.inbox import ends_attempt
from cloudshift_lab.conductor.side import OpenStore, Side, job_of_try
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    NodesMissing,
    NotFound,
    error_from_wire,
)
from cloudshift_lab.core.orders import AgentStatus, Order, OrderKind, OrderResult
from cloudshift_lab.core.plan import Going, Plan
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Effect, EffectName, Saga

_FOREVER = float("inf")
_SHRINKING = 0.25


@dataclass(frozen=True)
class Patience:
    """How long an effect may take before it counts as failed, seconds.

    ``silence_s``: an agent that says nothing new for so long is taken for dead before the commit;
    after it, it is stopped and started again. ``nodes_s``: nodes that are not up for so long, of a
    target that speaks, are missing. ``fresh_s``: a fresh commit to copy is waited for so long.
    """

    limits_s: dict[EffectName, float] = field(
        default_factory=lambda: {
            "provision": 300.0,
            "precopy": 3600.0,
            "rehearse": 1800.0,
            "drain": 900.0,
            "copy": 3600.0,
            "verify": 3600.0,
            "catch_up": 1800.0,
            "commit": 120.0,
            "go": _FOREVER,
            "retire": 60.0,
            "cancel": _FOREVER,
            "resume": 300.0,
            "release": 60.0,
        }
    )
    silence_s: float = 30.0
    nodes_s: float = 60.0
    fresh_s: float = 120.0
    stop_grace_s: float = 10.0


class TwoSides:
    """Source and target of one move; the target changes with the saga's tries.

    ``going`` is how far the pending order is, as its agent said last; None while nothing is known.

    Args:
        source: The attempt that moves.
        target: The first attempt it moves to.
        engine: Where their agents run.
        open_store: Opens a store by its cloud's name and its url.
        world: Clock.
        patience: Deadlines.
    """

    def __init__(
        self,
        source: JobSpec,
        target: JobSpec,
        engine: Engine,
        open_store: OpenStore,
        world: World,
        *,
        patience: Patience,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._world = world
        self._patience = patience
        self._first_target = target
        self._source = self._side("the source", source)
        self._target = self._side("the target", target)
        self._missing_since: float | None = None
        self.going: Going | None = None

    def _side(self, name: str, job: JobSpec) -> Side:
        return Side(name, job, self._engine, open_store=self._open_store, world=self._world)

    def _turn_to(self, saga: Saga) -> None:
        """Look at the target of this try.

        While the one before is released the saga names the next place already; releasing needs
        only the generation.
        """
        job = job_of_try(self._first_target, saga)
        if job != self._target.job:
            self._target = self._side("the target", job)
            self._missing_since = None

    def _obey(
        self, side: Side, effect: Effect, saga: Saga, kind: OrderKind
    ) -> tuple[AgentStatus, OrderResult] | tuple[None, None]:
        """Order something and look whether it is done."""
        side.line.send(self._order(effect.key, kind, saga))
        status = side.line.look()
        result = None if status is None else status.results.get(effect.key)
        if status is not None and result is not None:
            if result.state == "done":
                return status, result
            if result.state == "running" or result.num_bytes:
                self.going = _going(result)
            if result.state == "failed":
                raise error_of(result, f"{kind} failed at {side.name}")
        self._expect_alive(side, status)
        if side is self._target:
            self._expect_nodes(status)
        return None, None

    def _order(self, order_id: str, kind: OrderKind, saga: Saga) -> Order:
        """An order with everything that the saga knows and its obedience may need."""
        plan = saga.plan
        pushes = plan.carrier == "push" and kind in ("precopy", "copy")
        return Order(
            order_id=order_id,
            kind=kind,
            at=self._world.now(),
            step=saga.sealed_step,
            manifest_digest=saga.manifest_digest,
            num_steps=plan.rehearsal_steps if kind in ("precopy", "rehearse") else 0,
            tolerance=saga.tolerance if kind == "rehearse" else 0.0,
            replay=saga.shadows,
            to_cloud=saga.target.cloud if pushes else None,
            to_url=saga.target_url if pushes else None,
        )

    def _expect_nodes(self, status: AgentStatus | None) -> None:
        """Raise when some of the target's nodes have been missing for too long."""
        nodes = self._target.job.placement.nodes
        if status is None or status.nodes_up >= nodes:
            self._missing_since = None
            return
        now = self._world.monotonic()
        self._missing_since = now if self._missing_since is None else self._missing_since
        if now - self._missing_since > self._patience.nodes_s:
            raise _nodes_missing(status.nodes_up, nodes)

    def _expect_alive(self, side: Side, status: AgentStatus | None) -> None:
        """Raise when waiting for this agent is in vain."""
        if status is not None and ends_attempt(status):
            if side is self._target and status.nodes_up < side.job.placement.nodes:
                raise _nodes_missing(status.nodes_up, side.job.placement.nodes)
            why = f" ({status.error})" if status.error else ""
            raise Conflict(f"{side.name} has {status.state} meanwhile{why}; nothing was moved")
        if side.is_gone() and side.line.look() == status:
            raise NotFound(
                f"{side.name}'s agent is gone; see `cloudshift logs {side.job.run_id}`, "
                "then try again"
            )
        silent_s = side.line.silent_for_s()
        if silent_s > self._patience.silence_s:
            raise NotFound(
                f"{side.name}'s agent has said nothing for {silent_s:.0f} s; "
                "check its machine, then try again"
            )


def order_id_of(effect: Effect, saga: Saga) -> str:
    """An order that failed is asked again under a new name: an agent obeys each name once."""
    return f"{effect.key}:{saga.failures}" if saga.failures else effect.key


def error_of(result: OrderResult, what: str) -> CloudshiftError:
    """The error that an agent reported, with what it was about."""
    reason = result.error or "no reason given; see its logs"
    return error_from_wire(result.error_kind or "Conflict", f"{what}: {reason}")


def _nodes_missing(nodes_up: int, nodes: int) -> NodesMissing:
    return NodesMissing(
        f"only {nodes_up} of the target's {nodes} nodes are up; choose what a move does then "
        "(wait, shrink, elsewhere), or try again later",
        nodes_up=nodes_up,
    )


def nodes_up_of(error: CloudshiftError) -> int | None:
    """How many nodes are there, if that is what an error is about."""
    found = error.facts.get("nodes_up")
    return found if isinstance(found, int) else None


def _going(result: OrderResult) -> Going:
    return Going(
        done_bytes=result.num_bytes,
        total_bytes=result.total_bytes,
        bytes_per_s=result.bytes_per_s,
        eta_s=result.eta_s,
        detail=result.detail,
    )


def resumed_at(status: AgentStatus, saga: Saga) -> float | None:
    """When the source's first step after the seal ended, if one has."""
    last, drained = status.last_step_at, saga.drained_at
    return last if last is not None and drained is not None and last > drained else None


def later_rounds_pay(plan: Plan) -> bool:
    """Whether what a save adds is so much less than the whole that another round shrinks the gap.

    A dense optimizer changes everything in every step: then a second round is the first again.
    """
    sizes = {closing.kind: closing.num_bytes for closing in plan.closings}
    if "replay" not in sizes or "copy" not in sizes:
        return False
    return sizes["copy"] - sizes["replay"] <= _SHRINKING * sizes["replay"]
