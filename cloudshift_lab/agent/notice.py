"""A notice that the machine goes: what can be saved in the time is, and the rest is said before."""

from __future__ import annotations

from collections.abc import Callable

from cloudshift_lab.agent.attempt import Activity, Attempt
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.orders import Order, OrderResult
from cloudshift_lab.migration.grace import OUTLIVED_S, GraceFacts, assumed_words, plan_grace

ASSUMED_STEP_S = 1.0
ASSUMED_SAVE_S = 10.0


def heed(attempt: Attempt, order: Order, sealing: Callable[[], Activity]) -> Activity:
    """Have the newest state saved before the machine goes; done once it is committed.

    A save that is under way is not given up for a newer state that cannot be saved in time. An
    agent that does not own the run has nothing to save: what it was doing was called off already,
    unless the run is just arriving.

    Args:
        attempt: Whose machine goes.
        order: Says in how many seconds.
        sealing: Waits for the commit of the common step after which the ranks stop.

    Raises:
        UsageError: The order does not say when.
        CloudshiftError: As ``sealing`` does.
    """
    if order.within_s is None:
        raise UsageError(
            f"order '{order.order_id}' does not say in how many seconds; send it again"
        )
    until = _until(attempt, order.within_s)
    while not attempt.is_owner:
        if not attempt.is_obeying("go") and not attempt.tenure.has_arrived():
            yield OrderResult(state="done", detail="nothing was to be saved here")
            return
        yield OrderResult(state="running", detail="waiting for the run to arrive")
    within_s = max(0.0, until - attempt.world.now())
    plan = plan_grace(within_s, facts_of(attempt))
    says = attempt.board.status.notice_from
    told = f"this machine goes in {within_s:.0f} s: {plan.words}"
    attempt.board.note("notice", f"{says}: {told}" if says else told)
    if not plan.finishes:
        attempt.saves.keep_current()
    attempt.drain(for_notice=True)
    yield from sealing()


def outlive(attempt: Attempt) -> bool:
    """Notice that the machine is still there though its time is over, and forget the notice.

    Of several nodes all must be there: without one of them the ranks could not go on.

    Returns:
        Whether the ranks wait for nothing but the machine's end: then they should go on. A drain
        that a move or a person asked for stands.
    """
    until = attempt.board.status.notice_until
    if until is None or attempt.is_obeying("notice"):
        return False
    has_gone = attempt.view.nodes_up < attempt.job.placement.nodes
    if has_gone or attempt.world.now() < until + OUTLIVED_S:
        return False
    attempt.board.update(notice_until=None, notice_from="")
    attempt.board.note("notice", "this machine was to go, and is still here")
    return attempt.only_noticed and attempt.is_owner


def _until(attempt: Attempt, within_s: float) -> float:
    """When the machine goes, wall-clock seconds: of several notices the earliest counts."""
    known = attempt.board.status.notice_until
    until = attempt.world.now() + within_s
    until = until if known is None else min(known, until)
    attempt.board.update(notice_until=until)
    return until


def facts_of(attempt: Attempt) -> GraceFacts:
    """What has been measured of this attempt; careful guesses where nothing was."""
    view, status = attempt.view, attempt.board.status
    told_s = status.saves.save_s
    step_s = ASSUMED_STEP_S if view.step_s is None else view.step_s
    save_s = ASSUMED_SAVE_S if told_s is None else told_s
    newest = attempt.saves.newest
    at = view.step or 0
    is_owed = attempt.saves.is_owed(view) and view.staged_step is not None
    return GraceFacts(
        step_s=step_s,
        save_s=save_s,
        last_commit_age_steps=at - (0 if newest is None else newest.step) + 1,
        staged_age_steps=at - view.staged_step + 1 if is_owed and view.staged_step else None,
        staged_left_s=max(0.0, save_s - attempt.saves.saving_for_s) if is_owed else 0.0,
        assumed=assumed_words(
            step_s=step_s if view.step_s is None else None,
            save_s=save_s if told_s is None else None,
        ),
    )
