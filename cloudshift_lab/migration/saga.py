"""The saga of one move: ``step(saga, event) -> (saga, effects)``, pure and replayable.

::

    proposed -> approved -> provisioning -> precopying [-> rehearsing [-> asking]] -> draining
             -> copying -> verifying                 (closing "copy")
             -> verifying                            (closing "replay": catch_up)
             -> committing -> committed -> resumed -> source_retired
    proposed -> rejected | expired
    a forced stop of the source: draining first, then what is missing
    some nodes missing: provisioning again, by the plan's policy
    any failure up to and in committing -> rolling_back (cancel, resume, release) -> rolled_back
    cancel finds that the handover had landed -> committed, and from there only forward

Exactly one effect is pending in every phase between the decision and the end, but for ``asking``.
The driver runs it (again and again, it is idempotent), appends the outcome to its journal, and
only then calls ``step``. After a crash ``fold`` of the journal gives the same saga and ``pending``
the effect.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.plan import Phase, Plan
from cloudshift_lab.migration.deciding import decided, expired, repriced
from cloudshift_lab.migration.events import (
    Aborted,
    Decided,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
    Noticed,
    Overspent,
)
from cloudshift_lab.migration.route import go_on
from cloudshift_lab.migration.state import Saga, Stepped, enter, pending, roll_back, start
from cloudshift_lab.migration.trouble import (
    REVERSIBLE,
    aborted,
    failed,
    next_try,
    noticed,
    overspent,
)

_TELLING_BYTES = 16_000_000
_AFTER_DONE: dict[EffectName, tuple[Phase, EffectName | None]] = {
    "commit": ("committed", "go"),
    "go": ("resumed", "retire"),
    "retire": ("source_retired", None),
    "cancel": ("rolling_back", "resume"),
    "resume": ("rolling_back", "release"),
    "release": ("rolled_back", None),
}


def fold(plan: Plan, events: Iterable[Event], *, at: float | None = None) -> Saga:
    """The saga after all journalled events: what a restarted driver goes on from."""
    saga = start(plan, at)
    for event in events:
        saga, _ = step(saga, event)
    return saga


def step(saga: Saga, event: Event) -> Stepped:
    """Apply one event.

    An event that does not fit the state (late, repeated, for an effect that is not pending)
    changes nothing and asks for nothing.

    Returns:
        The new saga and the effects to run now.
    """
    if isinstance(event, EffectDone):
        return _done(saga, event)
    if isinstance(event, EffectFailed):
        return _count_lost(saga, event, failed(saga, event))
    return _told(saga, event)


def _told(saga: Saga, event: Decided | Expired | Aborted | Noticed | Overspent) -> Stepped:
    """Something came from outside, at any time."""
    match event:
        case Decided():
            return decided(saga, event)
        case Expired():
            return expired(saga, event)
        case Aborted():
            return _count_lost(saga, event, aborted(saga, event))
        case Noticed():
            return _count_lost(saga, event, noticed(saga, event))
        case Overspent():
            return _count_lost(saga, event, overspent(saga, event))


def _count_lost(
    before: Saga, event: Aborted | EffectFailed | Noticed | Overspent, stepped: Stepped
) -> Stepped:
    """Count what an effect had carried that is not pending any more: it was paid for."""
    saga, effects = stepped
    if not event.num_bytes or pending(saga) == pending(before):
        return stepped
    bytes_moved = saga.bytes_moved + event.num_bytes
    return msgspec.structs.replace(saga, bytes_moved=bytes_moved), effects


def _done(saga: Saga, event: EffectDone) -> Stepped:
    if _is_late_commit(saga, event):
        return enter(_learn(saga, event), "committed", "go", event.at, detail=event.detail)
    if event.effect != saga.effect:
        return saga, ()
    if event.effect == "drain" and event.step is None:
        told = "the source drained without naming a step"
        return roll_back(saga, told, event.at, error_kind="Corrupt")
    saga = _learn(saga, event)
    if saga.phase in REVERSIBLE:
        return _towards_commit(saga, event)
    phase, effect = _AFTER_DONE[event.effect]
    return enter(saga, phase, effect, event.at, detail=_describe(event))


def _towards_commit(saga: Saga, event: EffectDone) -> Stepped:
    if event.effect == "release":
        return next_try(saga, event.at)
    saga = msgspec.structs.replace(saga, done=(*saga.done, event.effect))
    if event.effect == "rehearse" and event.apart is not None:
        saga = msgspec.structs.replace(saga, closing="copy")  # only equal bits can be repeated
    return repriced(saga, event) or go_on(saga, event.at, detail=_describe(event))


def _is_late_commit(saga: Saga, event: EffectDone) -> bool:
    """Word that the handover landed, while ``cancel`` is still asking whether it had."""
    return event.effect == "commit" and saga.effect == "cancel" and saga.commit_attempted


def _speed(saga: Saga, event: EffectDone) -> float | None:
    """The link's speed: a few last bytes say less about it than the many before them."""
    is_little = event.num_bytes < _TELLING_BYTES and saga.bytes_per_s is not None
    return saga.bytes_per_s if is_little or event.bytes_per_s is None else event.bytes_per_s


def _learn(saga: Saga, event: EffectDone) -> Saga:
    """Keep what an effect reported."""
    saga = msgspec.structs.replace(
        saga,
        bytes_moved=saga.bytes_moved + event.num_bytes,
        bytes_per_s=_speed(saga, event),
        step_s=saga.step_s if event.step_s is None else event.step_s,
        repriced=saga.repriced if event.bill is None else event.bill,
        apart=saga.apart if event.apart is None else event.apart,
        apart_step=saga.apart_step if event.apart is None else event.apart_step,
    )
    match event.effect:
        case "drain":
            return msgspec.structs.replace(
                saga,
                sealed_step=event.step,
                manifest_digest=event.manifest_digest,
                drained_at=event.step_at,
                lost_steps=event.lost_steps,
            )
        case "copy":
            return msgspec.structs.replace(saga, pause_bytes=saga.pause_bytes + event.num_bytes)
        case "catch_up":
            return msgspec.structs.replace(saga, caught_up_at=event.step_at)
        case "commit":
            return msgspec.structs.replace(saga, commit_seq=event.seq)
        case "go" | "resume":
            return _measured_pause(saga, event)
    return saga


def _measured_pause(saga: Saga, event: EffectDone) -> Saga:
    """How long the run made no progress, and how long nothing was computed at all."""
    if event.step_at is None or saga.drained_at is None:
        return saga
    last_at = saga.drained_at
    if event.effect == "go" and saga.caught_up_at is not None:
        last_at = max(last_at, saga.caught_up_at)
    return msgspec.structs.replace(
        saga,
        pause_s=max(0.0, event.step_at - saga.drained_at),
        still_s=max(0.0, event.step_at - last_at),
    )


def _describe(event: EffectDone) -> str:
    if event.detail:
        return event.detail
    if event.effect == "drain":
        return f"sealed step {event.step}"
    return format_bytes(event.num_bytes) + " copied" if event.num_bytes else ""
