"""What is known about one move, and how it enters a phase."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import (
    FINAL_PHASES,
    Bill,
    ClosingKind,
    Decision,
    Fallback,
    Phase,
    PhaseTime,
    Plan,
)
from cloudshift_lab.migration.digest import plan_digest
from cloudshift_lab.migration.events import Effect, EffectName

Stepped = tuple["Saga", tuple[Effect, ...]]

AT_TARGET: frozenset[EffectName] = frozenset(
    {"provision", "precopy", "rehearse", "copy", "verify", "catch_up"}
)
"""Effects before the commit that need the target's machines."""

LOSS_TOLERANCE = 1e-3
"""How far a rehearsed loss may be from the source's, relative to the larger one, when nobody said.

Kernels that are not deterministic differ by less within a few steps; a wrong input by far more.
"""

_ONCE: frozenset[EffectName] = frozenset(
    {"drain", "commit", "retire", "cancel", "resume"}
)  # whatever the number of tries: these are the source's, or the log's


class Saga(msgspec.Struct, frozen=True):
    """Everything known about one move; a fold over its events.

    ``effect`` is what is pending now, ``failures`` how often it has failed in a row.
    ``commit_attempted`` is set before the first try to hand over: from then on only the log knows.
    ``error`` is the first failure, or the newest one of an effect that is being retried.
    ``pause_bytes`` are those of ``bytes_moved`` that nobody trained during.

    ``plan`` is the one that counts now: a worse bill asks again with another plan. ``approvals``
    are those of this plan, ``earlier`` decisions those on plans before it; ``decision`` settled it.
    ``done``: the effects that got through on the way to the commit, the target's of this try only.
    ``tries`` counts the targets that were given up, ``moved_to`` is where this one is if not where
    the plan says, ``fallbacks_used`` how many of the plan's were taken.
    ``closing`` is the actual one; ``rushed``: the source's machine will go (at ``notice``), drain
    at once. ``caught_up_at``: end of the last step that was repeated; ``still_s``: no optimizer
    step ran anywhere for so long. ``partial`` says what did not move. ``apart`` is the largest
    relative difference of this try's rehearsed losses, at ``apart_step``; None: all were equal bit
    by bit, or none was compared. ``repriced`` is the newest bill with measured figures,
    ``overspent_micro_usd`` what was spent when it was too much.
    ``approved_micro_usd`` is the limit of the plan that was approved last, 0 before the first.
    """

    plan: Plan
    phase: Phase
    effect: EffectName | None = None
    decision: Decision | None = None
    timeline: tuple[PhaseTime, ...] = ()
    sealed_step: int | None = None
    manifest_digest: str | None = None
    commit_attempted: bool = False
    commit_seq: int | None = None
    bytes_moved: int = 0
    failures: int = 0
    error_kind: str | None = None
    error: str | None = None
    drained_at: float | None = None
    pause_s: float | None = None
    pause_bytes: int = 0
    approvals: tuple[Decision, ...] = ()
    earlier: tuple[Decision, ...] = ()
    done: tuple[EffectName, ...] = ()
    tries: int = 0
    moved_to: Fallback | None = None
    fallbacks_used: int = 0
    closing: ClosingKind = "copy"
    rushed: bool = False
    notice: float | None = None
    caught_up_at: float | None = None
    still_s: float | None = None
    lost_steps: int = 0
    partial: str | None = None
    bytes_per_s: float | None = None
    step_s: float | None = None
    repriced: Bill | None = None
    overspent_micro_usd: int | None = None
    apart: float | None = None
    apart_step: int | None = None
    approved_micro_usd: int = 0

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL_PHASES

    @property
    def is_committed(self) -> bool:
        """The target owns the run; there is no way back."""
        return self.phase in ("committed", "resumed", "source_retired")

    @property
    def awaits_decision(self) -> bool:
        """Nothing happens until somebody decides on the plan, or it expires."""
        return self.phase in ("proposed", "asking")

    @property
    def limit_micro_usd(self) -> int:
        """What the move may cost by now; while a worse bill is asked about, not yet its limit."""
        return self.approved_micro_usd or self.plan.limit_micro_usd

    @property
    def is_sealed(self) -> bool:
        """The run's last step before the move is committed at the source."""
        return self.sealed_step is not None

    @property
    def target(self) -> Placement:
        """Where this try goes."""
        return self.plan.target if self.moved_to is None else self.moved_to.placement

    @property
    def target_url(self) -> str:
        """The store of this try's target."""
        return self.plan.target_url if self.moved_to is None else self.moved_to.url

    @property
    def is_like_planned(self) -> bool:
        """Whether this try computes as the planned target would, or as the source does.

        Judged by what the places say of themselves: machine, nodes and ranks. A fallback with
        another name for the same machine counts as another one, which costs time and no exactness.
        """
        if self.moved_to is None:
            return True
        return _kind(self.target) in (_kind(self.plan.source), _kind(self.plan.target))

    @property
    def tolerance(self) -> float:
        """How far this try's losses may be from the source's; another machine is never exact."""
        asked = self.plan.tolerance
        return asked if self.is_like_planned else max(asked, LOSS_TOLERANCE)

    @property
    def shadows(self) -> bool:
        """Whether the rehearsing ranks stay, to catch up with the sealed step."""
        return self.closing == "replay"


def _kind(place: Placement) -> tuple[str, int, int]:
    return place.instance_type, place.nodes, place.ranks_per_node


def start(plan: Plan, at: float | None = None) -> Saga:
    """A proposed move that waits for its decision.

    Args:
        plan: The plan with its digest (``digest.with_digest``).
        at: Wall-clock seconds of the proposal; the plan's own ``created_at`` by default.

    Raises:
        UsageError: The plan does not carry its own digest, or would replay without a rehearsal.
    """
    if plan.digest != plan_digest(plan):
        raise UsageError(
            f"plan '{plan.migration_id}' does not fit its digest; propose the move again"
        )
    if plan.closing == "replay" and plan.rehearsal_steps < 1:
        raise UsageError(
            f"plan '{plan.migration_id}' replays steps without a rehearsal; "
            "let it rehearse at least one step, or close by copying"
        )
    proposed = PhaseTime(phase="proposed", at=plan.created_at if at is None else at)
    return Saga(plan=plan, phase="proposed", timeline=(proposed,), closing=plan.closing)


def pending(saga: Saga) -> tuple[Effect, ...]:
    """What must be run (again) now: one effect, or none when final or waiting for a decision."""
    if saga.effect is None:
        return ()
    return (Effect(name=saga.effect, key=effect_key(saga, saga.effect)),)


def effect_key(saga: Saga, name: EffectName) -> str:
    """The idempotency key of one effect of this move; each try has its own for its target."""
    key = f"{saga.plan.migration_id}:{name}"
    return f"{key}@{saga.tries}" if saga.tries and name not in _ONCE else key


def enter(
    saga: Saga,
    phase: Phase,
    effect: EffectName | None,
    at: float,
    *,
    detail: str = "",
    anew: bool = False,
) -> Stepped:
    """Move on; a phase that is entered again keeps its first line in the timeline.

    Args:
        saga: Where the move is.
        phase: Where it goes.
        effect: What is pending there.
        at: Wall-clock seconds.
        detail: What was measured, or why.
        anew: The phase begins once more, with a line of its own.
    """
    timeline = saga.timeline
    if anew or phase != saga.phase:
        timeline = (*timeline, PhaseTime(phase=phase, at=at, detail=detail))
    saga = msgspec.structs.replace(
        saga,
        phase=phase,
        effect=effect,
        timeline=timeline,
        failures=0,
        commit_attempted=saga.commit_attempted or effect == "commit",
    )
    return saga, pending(saga)


def roll_back(saga: Saga, message: str, at: float, *, error_kind: str | None = None) -> Stepped:
    """Begin to undo: ``cancel`` asks the log first whether that is still possible."""
    kind = saga.error_kind if error_kind is None else error_kind
    saga = msgspec.structs.replace(saga, error_kind=kind, error=message)
    return enter(saga, "rolling_back", "cancel", at, detail=message)
