"""Decisions on a move: who may still take one, how many are needed, when it is asked again."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.errors import StaleDecision
from cloudshift_lab.core.money import format_usd
from cloudshift_lab.core.plan import Bill, Decision, Plan
from cloudshift_lab.migration.digest import with_digest
from cloudshift_lab.migration.events import Decided, EffectDone, Expired
from cloudshift_lab.migration.route import go_on
from cloudshift_lab.migration.state import Saga, Stepped, enter, roll_back

ASK_AGAIN_S = 600.0
_WORSE_SHARE = 0.10
_WORSE_MICRO_USD = 1_000_000


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
            ``decided`` (somebody else's decision won, or this person's other one; the message
            names it).
    """
    if _was_taken(saga, decision):
        return False
    plan, name = saga.plan, saga.plan.migration_id
    if decision.plan_digest != plan.digest:
        raise StaleDecision(
            f"the plan of '{name}' is not the one that was shown; look at it again and decide anew",
            reason="digest",
        )
    if saga.decision is not None:
        raise StaleDecision(
            f"'{name}' was decided already: {saga.decision.verdict} by {saga.decision.by}; "
            "start a new move if you want another outcome",
            reason="decided",
        )
    if saga.phase == "expired" or now >= plan.expires_at:
        raise StaleDecision(
            f"the plan of '{name}' has expired; propose the move again", reason="expired"
        )
    if not saga.awaits_decision:
        raise StaleDecision(
            f"'{name}' was called off ({saga.error}); propose the move again", reason="decided"
        )
    approved_by = {person(name) for name in _approvers(saga)}
    if decision.verdict == "approve" and person(decision.by) in approved_by:
        raise StaleDecision(
            f"'{name}' was approved by {decision.by} already; "
            f"{_missing(saga)} more must approve, each another one",
            reason="decided",
        )
    return True


def person(by: str) -> str:
    """Who decided, on whatever surface: ``ada (notebook)`` and ``ada (terminal)`` are ``ada``."""
    name, separator, surface = by.rpartition(" (")
    return name if separator and surface.endswith(")") else by


def decided(saga: Saga, event: Decided) -> Stepped:
    """Count a decision; the last one that is needed, or one reject, settles the plan."""
    try:
        is_news = check_decision(saga, event.decision, event.at)
    except StaleDecision:
        return saga, ()
    if not is_news:
        return saga, ()
    if event.decision.verdict == "reject":
        return _rejected(saga, event)
    saga = msgspec.structs.replace(saga, approvals=(*saga.approvals, event.decision))
    if _missing(saga) > 0:
        return saga, ()
    saga = msgspec.structs.replace(
        saga, decision=event.decision, approved_micro_usd=saga.plan.limit_micro_usd
    )
    by = "by " + " and ".join(_approvers(saga))
    if saga.phase == "asking":
        return go_on(saga, event.at, detail=f"the new bill was approved {by}")
    saga, _ = enter(saga, "approved", None, event.at, detail=by)
    return go_on(saga, event.at)


def expired(saga: Saga, event: Expired) -> Stepped:
    """Nobody decided in time: the move is over, or what was begun is undone."""
    if not saga.awaits_decision or event.at < saga.plan.expires_at:
        return saga, ()
    if saga.phase == "asking":
        return roll_back(saga, "nobody decided on the new bill in time", event.at)
    return enter(saga, "expired", None, event.at, detail="nobody decided in time")


def repriced(saga: Saga, event: EffectDone) -> Stepped | None:
    """Ask again when what was measured makes the bill worse than approved; None: go on.

    After the seal nobody is asked: the run stands still, and undoing would cost more.
    """
    if event.bill is None or saga.is_sealed:
        return None
    because = worse(saga.plan, event.bill)
    if because is None:
        return None
    plan = with_digest(
        msgspec.structs.replace(
            saga.plan,
            bill=event.bill,
            verdict="move" if event.bill.total_micro_usd < 0 else "stay",
            created_at=event.at,
            expires_at=event.at + (ASK_AGAIN_S if event.ask_s is None else event.ask_s),
            limit_micro_usd=saga.plan.limit_micro_usd
            if event.limit_micro_usd is None
            else event.limit_micro_usd,
        )
    )
    saga = msgspec.structs.replace(
        saga, plan=plan, decision=None, approvals=(), earlier=(*saga.earlier, *saga.approvals)
    )
    told = because if event.apart is None else f"{event.detail}; {because}"
    return enter(saga, "asking", None, event.at, detail=told)


def worse(plan: Plan, bill: Bill) -> str | None:
    """Why a bill is so much worse than the plan's that its approval does not cover it, or None.

    Less than a dollar is not asked about: a few rehearsed steps measure no pace to the cent, and
    being asked costs a person more.
    """
    approved, found = plan.bill.total_micro_usd, bill.total_micro_usd
    if found - approved <= _WORSE_MICRO_USD:
        return None
    told = f"the bill is {format_usd(found)} as measured, {format_usd(approved)} was approved"
    if found - approved > abs(approved) * _WORSE_SHARE:
        return told
    if approved < 0 <= found:
        return f"{told}: staying is no dearer now"
    return None


def _was_taken(saga: Saga, decision: Decision) -> bool:
    taken = (*saga.earlier, *saga.approvals)
    if saga.decision is not None:
        taken = (*taken, saga.decision)
    return any(
        (known.decision_id, known.verdict, known.plan_digest)
        == (decision.decision_id, decision.verdict, decision.plan_digest)
        for known in taken
    )


def _rejected(saga: Saga, event: Decided) -> Stepped:
    by = f"by {event.decision.by}"
    saga = msgspec.structs.replace(saga, decision=event.decision)
    if saga.phase == "asking":
        return roll_back(saga, f"the new bill was rejected {by}", event.at)
    return enter(saga, "rejected", None, event.at, detail=by)


def _approvers(saga: Saga) -> list[str]:
    return [approval.by for approval in saga.approvals]


def _missing(saga: Saga) -> int:
    """How many approvals are still needed; a plan always needs one."""
    return max(1, saga.plan.approvals_needed) - len(saga.approvals)
