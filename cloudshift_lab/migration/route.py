"""What comes next on the way to the commit: a pure function of what is done and what is wanted."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.plan import Phase
from cloudshift_lab.migration.events import EffectName
from cloudshift_lab.migration.state import Saga, Stepped, enter

_PHASES: dict[EffectName, Phase] = {
    "provision": "provisioning",
    "precopy": "precopying",
    "rehearse": "rehearsing",
    "drain": "draining",
    "copy": "copying",
    "verify": "verifying",
    "catch_up": "verifying",
    "commit": "committing",
}


def next_effect(saga: Saga) -> EffectName:
    """The first effect that is wanted and not done, on the way to the commit.

    Invariant: ``commit`` comes only after the seal and a proof of the sealed state at the target,
    ``verify`` or ``catch_up``.
    """
    return next((name for name in _way(saga) if name not in saga.done), "commit")


def _way(saga: Saga) -> tuple[EffectName, ...]:
    """All effects before the commit, in their order.

    Sealed already: what prepares without need is left out. Rushed: the seal comes first.
    """
    if saga.is_sealed:
        return ("provision", *_closing(saga))
    if saga.rushed:
        return ("drain",)
    prepared: tuple[EffectName, ...] = ("provision", "precopy")
    rehearsed: tuple[EffectName, ...] = ("rehearse",) if saga.plan.rehearsal_steps else ()
    return (*prepared, *rehearsed, "drain")


def _closing(saga: Saga) -> tuple[EffectName, ...]:
    """Closing the gap and proving it; only ranks that rehearsed can catch up."""
    if saga.closing == "replay" and "rehearse" in saga.done:
        return ("catch_up",)
    return ("copy", "verify")


def go_on(saga: Saga, at: float, *, detail: str = "", anew: bool = False) -> Stepped:
    """Enter the phase of what comes next."""
    if saga.closing == "replay" and saga.is_sealed and "rehearse" not in saga.done:
        saga = msgspec.structs.replace(saga, closing="copy")
    effect = next_effect(saga)
    return enter(saga, _PHASES[effect], effect, at, detail=detail, anew=anew)
