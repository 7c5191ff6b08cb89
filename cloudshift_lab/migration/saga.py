"""The saga of one move: ``step(saga, event) -> (saga, effects)``, pure and replayable.

::

    proposed -> approved -> provisioning -> precopying -> draining -> copying -> verifying
             -> committing -> committed -> resumed -> source_retired
    proposed -> rejected | expired
    any failure up to and in committing -> rolling_back (cancel, resume, release) -> rolled_back
    cancel finds that the handover had landed -> committed, and from there only forward

Exactly one effect is pending in every phase between the decision and the end. The driver runs it
(again and again, it is idempotent), appends the outcome to its journal, and only then calls
``step``. After a crash ``fold`` of the journal gives the same saga and ``pending`` the effect.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cloudshift_lab.core.errors import StaleDecision, UsageError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.plan import FINAL_PHASES, Decision, Phase, PhaseTime, Plan
from cloudshift_lab.migration.digest import plan_digest
from cloudshift_lab.migration.events import (
    Aborted,
    Decided,
    Effect,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
)

_AFTER_DONE: dict[EffectName, tuple[Phase, EffectName | None]] = {
    "provision": ("precopying", "precopy"),
    "precopy": ("draining", "drain"),
    "drain": ("copying", "copy"),
    "copy": ("verifying", "verify"),
    "verify": ("committing", "commit"),
    "commit": ("committed", "go"),
    "go": ("resumed", "retire"),
    "retire": ("source_retired", None),
    "cancel": ("rolling_back", "resume"),
    "resume": ("rolling_back", "release"),
    "release": ("rolled_back", None),
}
_REVERSIBLE: frozenset[Phase] = frozenset(
    {"provisioning", "precopying", "draining", "copying", "verifying"}
)
# How often a step that endangers nothing is tried before the saga goes on without it and says so.
# ``resume`` has patience because a drained source waits for it; ``cancel``, ``go`` and a landed
# ``commit`` are tried for ever, since nothing else would be safe.
_PATIENCE: dict[EffectName, int] = {"resume": 100, "release": 8, "retire": 8}
_GONE = frozenset({"Fenced", "NotFound"})

Stepped = tuple["Saga", tuple[Effect, ...]]


class Saga(msgspec.Struct, frozen=True):
    """Everything known about one move; a fold over its events.

    ``effect`` is what is pending now, ``failures`` how often it has failed in a row.
    ``commit_attempted`` is set before the first try to hand over: from then on only the log knows.
    ``error`` is the first failure, or the newest one of an effect that is being retried.
    ``pause_bytes`` are those of ``bytes_moved`` that nobody trained during.
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

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL_PHASES

    @property
    def is_committed(self) -> bool:
        """The target owns the run; there is no way back."""
        return self.phase in ("committed", "resumed", "source_retired")


def start(plan: Plan, at: float | None = None) -> Saga:
    """A proposed move that waits for its decision.

    Args:
        plan: The plan with its digest (``digest.with_digest``).
        at: Wall-clock seconds of the proposal; the plan's own ``created_at`` by default.

    Raises:
        UsageError: The plan does not carry its own digest.
    """
    if plan.digest != plan_digest(plan):
        raise UsageError(
            f"plan '{plan.migration_id}' does not fit its digest; propose the move again"
        )
    proposed = PhaseTime(phase="proposed", at=plan.created_at if at is None else at)
    return Saga(plan=plan, phase="proposed", timeline=(proposed,))


def fold(plan: Plan, events: Iterable[Event], *, at: float | None = None) -> Saga:
    """The saga after all journalled events: what a restarted driver goes on from."""
    saga = start(plan, at)
    for event in events:
        saga, _ = step(saga, event)
    return saga


def pending(saga: Saga) -> tuple[Effect, ...]:
    """What must be run (again) now: one effect, or none when final or waiting for a decision."""
    if saga.effect is None:
        return ()
    return (Effect(name=saga.effect, key=effect_key(saga, saga.effect)),)


def effect_key(saga: Saga, name: EffectName) -> str:
    """The idempotency key of one effect of this move."""
    return f"{saga.plan.migration_id}:{name}"


def check_decision(saga: Saga, decision: Decision, now: float) -> bool:
    """Whether a decision is news; call it before the decision is journalled.

    Args:
        saga: The move that is decided on.
        decision: The answer, bound to the digest of the plan that was shown.
        now: Wall-clock seconds of the conductor, which judges the expiry.

    Returns:
        True when the decision shall be taken, False when this very decision was taken before.

    Raises:
        StaleDecision: With fact ``reason``: ``digest`` (another plan was shown), ``expired``, or
            ``decided`` (somebody else's decision won; the message names it).
    """
    plan, winner = saga.plan, saga.decision
    if decision.plan_digest != plan.digest:
        raise StaleDecision(
            f"the plan of '{plan.migration_id}' is not the one that was shown; "
            "look at it again and decide anew",
            reason="digest",
        )
    if winner is not None:
        if (winner.decision_id, winner.verdict) == (decision.decision_id, decision.verdict):
            return False
        raise StaleDecision(
            f"'{plan.migration_id}' was decided already: {winner.verdict} by {winner.by}; "
            "start a new move if you want another outcome",
            reason="decided",
        )
    if saga.phase == "expired" or now >= plan.expires_at:
        raise StaleDecision(
            f"the plan of '{plan.migration_id}' has expired; propose the move again",
            reason="expired",
        )
    if saga.phase != "proposed":
        raise StaleDecision(
            f"'{plan.migration_id}' was called off ({saga.error}); propose the move again",
            reason="decided",
        )
    return True


def step(saga: Saga, event: Event) -> Stepped:
    """Apply one event.

    An event that does not fit the state (late, repeated, for an effect that is not pending)
    changes nothing and asks for nothing.

    Returns:
        The new saga and the effects to run now.
    """
    if isinstance(event, Decided):
        return _decided(saga, event)
    if isinstance(event, Expired):
        return _expired(saga, event)
    if isinstance(event, Aborted):
        return _aborted(saga, event)
    if isinstance(event, EffectDone):
        return _done(saga, event)
    return _failed(saga, event)


def _enter(
    saga: Saga, phase: Phase, effect: EffectName | None, at: float, *, detail: str = ""
) -> Stepped:
    """Move on; a phase that is entered again keeps its first line in the timeline."""
    timeline = saga.timeline
    if phase != saga.phase:
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


def _decided(saga: Saga, event: Decided) -> Stepped:
    try:
        is_news = check_decision(saga, event.decision, event.at)
    except StaleDecision:
        return saga, ()
    if not is_news:
        return saga, ()
    saga = msgspec.structs.replace(saga, decision=event.decision)
    by = f"by {event.decision.by}"
    if event.decision.verdict == "reject":
        return _enter(saga, "rejected", None, event.at, detail=by)
    saga, _ = _enter(saga, "approved", None, event.at, detail=by)
    return _enter(saga, "provisioning", "provision", event.at)


def _expired(saga: Saga, event: Expired) -> Stepped:
    if saga.phase != "proposed" or event.at < saga.plan.expires_at:
        return saga, ()
    return _enter(saga, "expired", None, event.at, detail="nobody decided in time")


def _aborted(saga: Saga, event: Aborted) -> Stepped:
    message = event.message or "called off"
    if saga.phase == "proposed":
        saga = msgspec.structs.replace(saga, error=message)
        return _enter(saga, "rejected", None, event.at, detail=message)
    if saga.phase not in _REVERSIBLE:
        return saga, ()
    saga = msgspec.structs.replace(saga, error=message)
    return _enter(saga, "rolling_back", "cancel", event.at, detail=message)


def _done(saga: Saga, event: EffectDone) -> Stepped:
    if _is_late_commit(saga, event):
        return _enter(_learn(saga, event), "committed", "go", event.at, detail=event.detail)
    if event.effect != saga.effect:
        return saga, ()
    if event.effect == "drain" and event.step is None:
        return _roll_back(saga, "Corrupt", "the source drained without naming a step", event.at)
    saga = _learn(saga, event)
    phase, effect = _AFTER_DONE[event.effect]
    return _enter(saga, phase, effect, event.at, detail=_describe(event))


def _is_late_commit(saga: Saga, event: EffectDone) -> bool:
    """Word that the handover landed, while ``cancel`` is still asking whether it had."""
    return event.effect == "commit" and saga.effect == "cancel" and saga.commit_attempted


def _learn(saga: Saga, event: EffectDone) -> Saga:
    """Keep what an effect reported."""
    saga = msgspec.structs.replace(saga, bytes_moved=saga.bytes_moved + event.num_bytes)
    if event.effect == "drain":
        return msgspec.structs.replace(
            saga,
            sealed_step=event.step,
            manifest_digest=event.manifest_digest,
            drained_at=event.step_at,
        )
    if event.effect == "copy":
        return msgspec.structs.replace(saga, pause_bytes=saga.pause_bytes + event.num_bytes)
    if event.effect == "commit":
        return msgspec.structs.replace(saga, commit_seq=event.seq)
    if event.effect == "go" and event.step_at is not None and saga.drained_at is not None:
        return msgspec.structs.replace(saga, pause_s=max(0.0, event.step_at - saga.drained_at))
    return saga


def _describe(event: EffectDone) -> str:
    if event.detail:
        return event.detail
    if event.effect == "drain":
        return f"sealed step {event.step}"
    return format_bytes(event.num_bytes) + " copied" if event.num_bytes else ""


def _failed(saga: Saga, event: EffectFailed) -> Stepped:
    if event.effect != saga.effect:
        return saga, ()
    if saga.phase in _REVERSIBLE or saga.phase == "committing":
        return _roll_back(saga, event.error_kind, event.message, event.at)
    if event.effect == "cancel" and event.error_kind == "Fenced":
        return _cancel_refused(saga, event)
    if _is_hopeless(saga, event):
        saga = _note_error(saga, event)
        phase, effect = _AFTER_DONE[event.effect]
        return _enter(saga, phase, effect, event.at, detail=event.message)
    saga = msgspec.structs.replace(saga, failures=saga.failures + 1)
    if saga.phase != "rolling_back":  # while rolling back, the reason for it is worth more
        saga = _note_error(saga, event)
    return saga, pending(saga)


def _roll_back(saga: Saga, error_kind: str, message: str, at: float) -> Stepped:
    saga = msgspec.structs.replace(saga, error_kind=error_kind, error=message)
    return _enter(saga, "rolling_back", "cancel", at, detail=message)


def _cancel_refused(saga: Saga, event: EffectFailed) -> Stepped:
    """The log moved on: by our own handover (go forward) or by somebody else (nothing to undo)."""
    if saga.commit_attempted:
        saga = msgspec.structs.replace(saga, error=None, error_kind=None)
        return _enter(saga, "committed", "commit", event.at, detail="the handover had landed")
    return _enter(saga, "rolling_back", "resume", event.at)


def _is_hopeless(saga: Saga, event: EffectFailed) -> bool:
    """The effect endangers nothing and will not succeed any more."""
    patience = _PATIENCE.get(event.effect)
    if patience is None:
        return False
    is_gone = event.effect == "resume" and event.error_kind in _GONE
    return is_gone or saga.failures + 1 >= patience


def _note_error(saga: Saga, event: EffectFailed) -> Saga:
    """Keep the reason of a rollback in front of what went wrong after it."""
    message = f"{event.effect}: {event.message}"
    if saga.phase == "rolling_back" and saga.error is not None:
        message = f"{saga.error}; then {message}"
    return msgspec.structs.replace(saga, error_kind=event.error_kind, error=message)
