"""What a move does when an effect fails, a machine is to go, or the money is gone."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.money import format_usd
from cloudshift_lab.core.plan import Fallback, Phase
from cloudshift_lab.migration.events import Aborted, EffectFailed, EffectName, Noticed, Overspent
from cloudshift_lab.migration.route import go_on
from cloudshift_lab.migration.state import AT_TARGET, Saga, Stepped, enter, pending, roll_back

REVERSIBLE: frozenset[Phase] = frozenset(
    {
        "provisioning",
        "precopying",
        "rehearsing",
        "asking",
        "draining",
        "copying",
        "verifying",
    }
)
# How often a step that endangers nothing is tried before the saga goes on without it and says so.
# ``resume`` has patience because a drained source waits for it; ``cancel``, ``go`` and a landed
# ``commit`` are tried for ever, since nothing else would be safe.
_PATIENCE: dict[EffectName, int] = {"resume": 100, "release": 8, "retire": 8}
# With the driver's pauses, how often nodes are waited for: about ten minutes.
_WAITS_FOR_NODES = 64
# Targets that are given up before the move is: each costs a start, and a forced stop has no way
# back that is worth more.
_MOST_TRIES = 4
_GONE = frozenset({"Fenced", "NotFound"})
_COPY_INSTEAD = frozenset({"Mismatch", "Exhausted", "Unsupported"})

Remedy = Literal["back", "wait", "shrink", "elsewhere", "again"]


def failed(saga: Saga, event: EffectFailed) -> Stepped:
    """An effect failed, or nobody knows."""
    if event.effect != saga.effect:
        return saga, ()
    if saga.phase in REVERSIBLE:
        return _before_commit(saga, event)
    if saga.phase == "committing":
        return roll_back(saga, event.message, event.at, error_kind=event.error_kind)
    if event.effect == "cancel" and event.error_kind == "Fenced":
        return _cancel_refused(saga, event)
    if _is_hopeless(saga, event):
        return _without(_note_error(saga, event), event)
    saga = msgspec.structs.replace(saga, failures=saga.failures + 1)
    if saga.phase != "rolling_back":  # while rolling back, the reason for it is worth more
        saga = _note_error(saga, event)
    return saga, pending(saga)


def aborted(saga: Saga, event: Aborted) -> Stepped:
    """The move is called off, where that is still possible."""
    message = event.message or "called off"
    if saga.phase == "proposed":
        saga = msgspec.structs.replace(saga, error=message)
        return enter(saga, "rejected", None, event.at, detail=message)
    return roll_back(saga, message, event.at) if saga.phase in REVERSIBLE else (saga, ())


def overspent(saga: Saga, event: Overspent) -> Stepped:
    """Undo what costs more than was approved; after the commit there is nothing to undo."""
    if saga.phase not in REVERSIBLE and saga.phase != "committing":
        return saga, ()
    saga = msgspec.structs.replace(saga, overspent_micro_usd=event.micro_usd)
    spent, limit = format_usd(event.micro_usd), format_usd(saga.limit_micro_usd)
    message = f"the move has cost {spent}, its limit is {limit}; approve a higher one to try again"
    return roll_back(saga, message, event.at, error_kind="Exhausted")


def noticed(saga: Saga, event: Noticed) -> Stepped:
    """A machine will be taken away: the source's seal comes first, a target's is not moved to."""
    if saga.is_final or saga.is_committed:
        return saga, ()
    if event.side == "target":
        return _target_noticed(saga, event)
    deadline = event.deadline if saga.notice is None else min(saga.notice, event.deadline)
    saga = msgspec.structs.replace(saga, rushed=True, notice=deadline)
    if saga.is_sealed or saga.effect not in ("provision", "precopy", "rehearse"):
        return saga, pending(saga)
    left_s = max(0.0, deadline - event.at)
    return go_on(saga, event.at, detail=f"the source's machine goes in {left_s:.0f} s")


def _target_noticed(saga: Saga, event: Noticed) -> Stepped:
    if saga.phase not in REVERSIBLE and saga.phase != "committing":
        return saga, ()
    left_s = max(0.0, event.deadline - event.at)
    message = f"the target's machine goes in {left_s:.0f} s; propose the move elsewhere"
    return roll_back(saga, message, event.at, error_kind="Exhausted")


# -- before the commit ---------------------------------------------------------------------


def _before_commit(saga: Saga, event: EffectFailed) -> Stepped:
    if event.effect == "release":
        return _given_up(saga, event)
    if event.effect == "catch_up" and event.error_kind in _COPY_INSTEAD:
        saga = msgspec.structs.replace(saga, closing="copy")
        return go_on(saga, event.at, detail=f"copied instead: {event.message}")
    remedy = _remedy(saga, event)
    if remedy == "wait":
        saga = _note_error(msgspec.structs.replace(saga, failures=saga.failures + 1), event)
        return saga, pending(saga)
    if remedy == "back":
        return roll_back(saga, event.message, event.at, error_kind=event.error_kind)
    return _give_up_target(saga, event, remedy)


def _remedy(saga: Saga, event: EffectFailed) -> Remedy:
    """What the plan's policy, or the source's forced stop, wants done about a failed effect."""
    if event.effect not in AT_TARGET or event.error_kind == "Mismatch":
        return "back"
    policy = saga.plan.missing_nodes
    if event.error_kind == "NodesMissing":
        if policy == "wait":
            return _wait(saga, event)
        if policy == "shrink" and _can_shrink(saga, event):
            return "shrink"
    misses = event.error_kind == "NodesMissing" or event.effect == "provision"
    if policy == "elsewhere" and misses and _fallback(saga) is not None:
        return "elsewhere"
    if saga.rushed and saga.is_sealed and saga.tries < _MOST_TRIES:
        return "again" if _fallback(saga) is None else "elsewhere"
    return "back"


def _wait(saga: Saga, event: EffectFailed) -> Remedy:
    """Nodes that never came may still come; a target that lost one is begun again."""
    if event.effect == "provision":
        return "wait" if saga.failures < _WAITS_FOR_NODES else "back"
    return "again" if saga.tries < _MOST_TRIES else "back"


def _can_shrink(saga: Saga, event: EffectFailed) -> bool:
    return event.nodes_up is not None and (
        max(1, saga.plan.min_nodes) <= event.nodes_up < saga.target.nodes
    )


def _fallback(saga: Saga) -> Fallback | None:
    left = saga.plan.fallbacks[saga.fallbacks_used :]
    return left[0] if left else None


def _give_up_target(saga: Saga, event: EffectFailed, remedy: Remedy) -> Stepped:
    """Release this try's target; the next try is where ``moved_to`` says.

    The half that is given up may wake late: its generation never gets a handover.
    """
    saga = _note_error(saga, event)
    detail = f"again: {event.message}"
    if remedy == "shrink":
        assert event.nodes_up is not None
        nodes, planned = event.nodes_up, saga.plan.target.nodes
        partial = f"{nodes} of {planned} nodes came up; the run goes on with {nodes}"
        placement = msgspec.structs.replace(saga.target, nodes=nodes)
        place = Fallback(placement=placement, url=saga.target_url)
        saga = msgspec.structs.replace(saga, moved_to=place, partial=partial)
        detail = f"with {nodes} of {planned} nodes: {event.message}"
    elif remedy == "elsewhere":
        place = saga.plan.fallbacks[saga.fallbacks_used]
        saga = msgspec.structs.replace(
            saga, moved_to=place, partial=None, fallbacks_used=saga.fallbacks_used + 1
        )
        detail = f"to {place.placement.target}: {event.message}"
    kept = tuple(name for name in saga.done if name not in AT_TARGET)
    saga = msgspec.structs.replace(saga, done=kept, apart=None, apart_step=None)
    saga, why = _choose_closing(saga)
    return enter(saga, "provisioning", "release", event.at, detail=detail + why, anew=True)


def _choose_closing(saga: Saga) -> tuple[Saga, str]:
    """The next try's closing: as planned, unless that was to repeat steps, and they may differ."""
    if saga.is_sealed or saga.is_like_planned:
        return msgspec.structs.replace(saga, closing=saga.plan.closing), ""
    why = "; the machine is another, so the last step will be copied, not repeated"
    saga, was = msgspec.structs.replace(saga, closing="copy"), saga.plan.closing
    return saga, why if was == "replay" else ""


def _given_up(saga: Saga, event: EffectFailed) -> Stepped:
    """A target that was given up could not be released: again, a few times, then without."""
    if saga.failures + 1 < _PATIENCE["release"]:
        return msgspec.structs.replace(saga, failures=saga.failures + 1), pending(saga)
    return next_try(_note_error(saga, event), event.at)


def next_try(saga: Saga, at: float) -> Stepped:
    """The former target is released: begin the next one, with a generation of its own."""
    return go_on(msgspec.structs.replace(saga, tries=saga.tries + 1), at)


# -- while undoing, and after the commit ----------------------------------------------------


def _cancel_refused(saga: Saga, event: EffectFailed) -> Stepped:
    """The log moved on: by our own handover (go forward) or by somebody else (nothing to undo)."""
    if saga.commit_attempted:
        saga = msgspec.structs.replace(saga, error=None, error_kind=None)
        return enter(saga, "committed", "commit", event.at, detail="the handover had landed")
    return enter(saga, "rolling_back", "resume", event.at)


def _is_hopeless(saga: Saga, event: EffectFailed) -> bool:
    """The effect endangers nothing and will not succeed any more."""
    patience = _PATIENCE.get(event.effect)
    if patience is None:
        return False
    is_gone = event.effect == "resume" and event.error_kind in _GONE
    return is_gone or saga.failures + 1 >= patience


def _without(saga: Saga, event: EffectFailed) -> Stepped:
    if event.effect == "resume":
        return enter(saga, "rolling_back", "release", event.at)
    last: Phase = "rolled_back" if event.effect == "release" else "source_retired"
    return enter(saga, last, None, event.at, detail=event.message)


def _note_error(saga: Saga, event: EffectFailed) -> Saga:
    """Keep the reason of a rollback in front of what went wrong after it."""
    message = f"{event.effect}: {event.message}"
    if saga.phase == "rolling_back" and saga.error is not None:
        message = f"{saga.error}; then {message}"
    return msgspec.structs.replace(saga, error_kind=event.error_kind, error=message)
