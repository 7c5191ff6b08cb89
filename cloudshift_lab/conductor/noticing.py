"""A machine that will be taken away: what is known of the run then, and what can still be done."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cloudshift_lab.core.asks import NoticeAsk, NoticeView
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.orders import AgentStatus
from cloudshift_lab.market.closing import ASSUMED_RESTORE_S
from cloudshift_lab.market.estimate import ASSUMED_BYTES_PER_S, estimate_transfer_s
from cloudshift_lab.migration import GraceFacts, Saga, plan_grace
from cloudshift_lab.migration.grace import OUTLIVED_S, assumed_words

_ASSUMED_STEP_S = 1.0
_ASSUMED_PROVISION_S = 20.0
_LONGEST_NOTICE_S = 86_400.0
SIMULATED = "SIMULATED"


def check_notice(ask: NoticeAsk) -> None:
    """Raise UsageError when a notice is out of range."""
    if not 0 <= ask.within_s <= _LONGEST_NOTICE_S:
        raise UsageError("a notice is given 0 s to 24 h ahead; mend the call")


def noticed_generation(
    run_id: str, ask: NoticeAsk, saga: Saga | None, *, own: int, target: int | None
) -> int:
    """The attempt whose machine goes.

    Args:
        run_id: Which run.
        ask: Which side's machine.
        saga: The open move, None without one.
        own: The generation that the run belongs to.
        target: The one that a move under way goes to; None: there is none.

    Raises:
        UsageError: It is the target's, and there is none.
    """
    if ask.side == "source":
        return own if saga is None else saga.plan.generation
    if target is None:
        raise UsageError(
            f"{run_id} is not moving, so it has no target; "
            "give the notice for side 'source', where it is"
        )
    return target


def heard(
    status: AgentStatus | None,
    notices: Mapping[int, NoticeView],
    source: int | None,
    *,
    now: float,
) -> NoticeAsk | None:
    """What an agent has heard of its machine's end, as a person would say it; None: no news.

    Args:
        status: The agent's newest word.
        notices: Those that the conductor has, by generation.
        source: The generation that an open move leaves; None without one.
        now: Wall-clock seconds.
    """
    if status is None or status.notice_until is None or not status.notice_from:
        return None
    known, until = notices.get(status.generation), status.notice_until
    is_over = known is None or now >= known.deadline + OUTLIVED_S
    if known is not None and not is_over and known.deadline <= max(until, now) + 1.0:
        return None
    within_s = min(max(0.0, until - now), _LONGEST_NOTICE_S)
    return NoticeAsk(
        within_s=within_s, side="source" if source in (None, status.generation) else "target"
    )


def knows(status: AgentStatus | None, generation: int, view: NoticeView) -> bool:
    """Whether the agent of this generation has heard of a notice, or of a sooner one."""
    if status is None or status.generation != generation or status.notice_until is None:
        return False
    return status.notice_until <= view.deadline + 1.0


def is_outlived(view: NoticeView, status: AgentStatus | None, *, now: float) -> bool:
    """Whether the machine is still there though its time is over, as its agent has found."""
    has_forgotten = status is not None and status.notice_until is None
    return has_forgotten and now >= view.deadline + OUTLIVED_S


def taken_words(view: NoticeView, kept: str) -> str:
    """Why a run is lost whose machine went as had been said."""
    mark = " [simulated]" if SIMULATED in view.words else ""
    return f"its machine was taken away, as had been said{mark} ({kept})"


def standing_words(run_id: str, view: NoticeView, status: AgentStatus | None) -> str:
    """What a notice means now: what will be saved, or what is, and what is to be done next."""
    if status is None or status.state != "drained" or status.committed_step is None:
        return view.words
    says = f"{status.notice_from}: " if status.notice_from else ""
    return (
        f"{says}step {status.committed_step} is saved and the ranks have stopped; move the run "
        f"with `cloudshift migrate {run_id} --to CLOUD`, or continue it where there is a machine, "
        f"once this one has gone, with `cloudshift resume {run_id}`"
    )


def notice_view(
    run_id: str,
    ask: NoticeAsk,
    status: AgentStatus | None,
    saga: Saga | None,
    *,
    now: float,
    says: str = "",
) -> NoticeView:
    """What will and what will not be done in the time.

    Args:
        run_id: Which run.
        ask: Which side's machine goes, and when.
        status: The newest word of the agent that trains.
        saga: The open move, None without one.
        now: Wall-clock seconds.
        says: Who said so, when the machine heard it itself.
    """
    view = _view(run_id, ask, status, saga, now=now)
    return msgspec.structs.replace(view, words=f"{says}: {view.words}") if says else view


def _view(
    run_id: str, ask: NoticeAsk, status: AgentStatus | None, saga: Saga | None, *, now: float
) -> NoticeView:
    bare = NoticeView(
        run_id=run_id,
        side=ask.side,
        at=now,
        deadline=now + ask.within_s,
        migration_id=None if saga is None else saga.plan.migration_id,
    )
    if saga is not None and saga.is_committed:
        if ask.side == "source":
            words = "the run is at its target already; only what is left of its source goes"
            return msgspec.structs.replace(bare, words=words)
        status, saga = _of_target(status, saga), None
    elif ask.side == "target":
        words = "the run stays at its source, which trains on" if saga is None else _back(saga)
        return msgspec.structs.replace(bare, does=("roll back",), words=words)
    plan = plan_grace(ask.within_s, _facts(status, saga))
    return msgspec.structs.replace(
        bare,
        does=plan.does,
        finishes=plan.finishes,
        lost_steps=plan.lost_steps,
        words=plan.words,
    )


def _of_target(status: AgentStatus | None, saga: Saga) -> AgentStatus | None:
    """The word of the run's new owner, for whom the sealed step is saved whoever holds it."""
    if status is None or status.generation == saga.plan.generation:
        return None
    saved = max(status.committed_step or 0, saga.sealed_step or 0)
    return msgspec.structs.replace(status, committed_step=saved)


def _back(saga: Saga) -> str:
    """What a target that goes before the commit means for the run."""
    if saga.notice is not None:
        return "its source's machine goes too: the run stays saved there until it is resumed"
    if saga.phase == "committing":
        return "the run resumes at its source, unless it is handed over already; look again soon"
    if saga.is_sealed:
        return f"the run resumes at its source, from step {saga.sealed_step}"
    return "the run stays at its source, which trains on"


def _facts(status: AgentStatus | None, saga: Saga | None) -> GraceFacts:
    """What the agent said last; what it did not say is assumed."""
    if status is None:
        assumed = assumed_words(step_s=_ASSUMED_STEP_S, save_s=0.0)
        return GraceFacts(
            step_s=_ASSUMED_STEP_S, save_s=0.0, last_commit_age_steps=0, assumed=assumed
        )
    told_s, step_s = status.saves.save_s, status.step_s
    save_s = status.state_bytes / ASSUMED_BYTES_PER_S if told_s is None else told_s
    return GraceFacts(
        step_s=_ASSUMED_STEP_S if step_s is None else step_s,
        save_s=save_s,
        last_commit_age_steps=_age(status, status.committed_step or 0),
        staged_age_steps=None if (staged := _staged(status)) is None else _age(status, staged),
        staged_left_s=save_s,
        provision_s=_provision_s(saga),
        copy_s=_copy_s(saga),
        restore_s=ASSUMED_RESTORE_S,
        assumed=assumed_words(
            step_s=_ASSUMED_STEP_S if step_s is None else None,
            save_s=save_s if told_s is None else None,
        ),
    )


def _staged(status: AgentStatus) -> int | None:
    """A staged step that is not committed yet."""
    staged, committed = status.staged_step, status.committed_step
    return None if staged is None or staged <= (committed or 0) else staged


def _age(status: AgentStatus, step: int) -> int:
    """Steps since then, the running one too."""
    return max(0, (status.step or 0) - step) + 1


def _provision_s(saga: Saga | None) -> float | None:
    if saga is None or saga.phase == "proposed":
        return None
    return 0.0 if "provision" in saga.done else _ASSUMED_PROVISION_S


def _copy_s(saga: Saga | None) -> float | None:
    if saga is None:
        return None
    carried = 0 if saga.tries else saga.bytes_moved  # what went to a target that was given up
    num_bytes = saga.plan.bill.transfer_bytes - carried
    return estimate_transfer_s(max(0, num_bytes), saga.bytes_per_s).seconds
