"""A run as every surface shows it, put together from its journal, its agent and its telemetry."""

from __future__ import annotations

from cloudshift_lab.conductor.budgets import standing
from cloudshift_lab.conductor.healing import is_soon, lost_words, restarted_words
from cloudshift_lab.conductor.moves import Move
from cloudshift_lab.conductor.noticing import is_outlived, standing_words
from cloudshift_lab.conductor.places import Places
from cloudshift_lab.conductor.records import Attempt, RunRecord
from cloudshift_lab.conductor.spending import cost_lines
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.money import HOUR_S, MICRO
from cloudshift_lab.core.orders import AgentStatus
from cloudshift_lab.core.plan import MigrationView
from cloudshift_lab.core.run import Progress, RunState, RunView
from cloudshift_lab.core.views import CostView, Series
from cloudshift_lab.core.views import Move as MoveMark
from cloudshift_lab.migration import view

_STARTING = frozenset({"starting", "standby"})


def run_state(tender: RunTender) -> RunState:
    """The one word for how a run is."""
    if is_soon(tender.record, tender.ruled):
        return "starting"
    if tender.record.ended is not None:
        return tender.record.ended.state
    move = tender.open_move
    if move is not None and move.is_under_way:
        return "migrating"
    if tender.record.stop_asked is not None:
        return "stopping"
    if tender.status is None or tender.status.state in _STARTING:
        return "starting"
    return "running"


def show_run(
    tender: RunTender,
    cost: CostView,
    progress: Progress | None,
    *,
    losses: tuple[tuple[int, float], ...],
    now: float,
) -> RunView:
    """Assemble one view; the caller holds the tender's lock.

    Args:
        tender: The run.
        cost: Its cost now.
        progress: Its newest telemetry.
        losses: Its sparkline.
        now: Wall-clock seconds.
    """
    record, owner, status = tender.record, tender.owner, tender.status
    ended = record.ended
    newest = _newest(status, progress)
    move = tender.open_move
    notice = None if ended is not None else record.notices.get(owner.job.generation)
    if notice is not None and is_outlived(notice, status, now=now):
        notice = None
    return RunView(
        run_id=record.run_id,
        name=record.spec.name,
        state=run_state(tender),
        placement=owner.job.placement,
        generation=owner.job.generation,
        created_at=record.created.at,
        simulated=any(attempt.started.simulated for attempt in record.attempts.values()),
        step=newest[0] if newest[0] is not None else (ended.step if ended else None),
        loss=newest[1] if newest[1] is not None else (ended.loss if ended else None),
        tokens_per_s=None if progress is None or ended is not None else progress.tokens_per_s,
        progress_at=newest[2],
        price_micro_usd_per_h=0 if ended is not None else record.price_micro_usd_per_h(),
        price_source=owner.price_source,
        spent_micro_usd=cost.total_micro_usd,
        checkpoint_step=_checkpoint(tender)[0],
        checkpoint_at=_checkpoint(tender)[1],
        store_url=owner.job.store_url,
        migration_id=None if move is None else move.opened.migration_id,
        error=_trouble(tender) if ended is None else _end_words(tender, now),
        error_rank=None if ended is None else ended.error_rank,
        traceback=None if ended is None else ended.traceback,
        losses=losses,
        ended_at=None if ended is None or is_soon(record, tender.ruled) else ended.at,
        as_of=now,
        saves=None if status is None else status.saves,
        origin=None if record.created.origin is None else record.created.origin.ref,
        notice_until=None if notice is None else notice.deadline,
        notice="" if notice is None else standing_words(record.run_id, notice, status),
        restart=record.spec.restart,
        restarts=len(record.restarts),
        restarted=restarted_words(record),
        restarted_at=max((each.at for each in record.restarts.values()), default=None),
        budget="" if cost.budget is None else cost.budget.words,
        budget_alarm=max((alarm.percent for alarm in record.alarms), default=0),
    )


def _end_words(tender: RunTender, now: float) -> str | None:
    """Why a run has ended; of a lost one also what is done about that, or what keeps from it."""
    record = tender.record
    if record.ended is None or not record.ended.is_gone:
        return None if record.ended is None else record.ended.error
    words = lost_words(record, tender.ruled, now)
    is_kept_waiting = record.awaits_restart and tender.trouble is not None
    return f"{words}; {tender.trouble}" if is_kept_waiting else words


def _newest(
    status: AgentStatus | None, progress: Progress | None
) -> tuple[int | None, float | None, float | None]:
    """``(step, loss, at)`` of whichever of agent and telemetry is ahead."""
    told = None if status is None else status.step
    if progress is not None and (told is None or progress.step >= told):
        return progress.step, progress.loss, progress.at
    if status is None:
        return None, None, None
    return status.step, status.loss, status.last_step_at


def _checkpoint(tender: RunTender) -> tuple[int | None, float | None]:
    """Step and time of the newest commit, across attempts."""
    if tender.status is not None and tender.status.committed_step is not None:
        return tender.status.committed_step, tender.status.committed_at
    ended = tender.record.ended
    if ended is not None and ended.checkpoint_step is not None:
        return ended.checkpoint_step, ended.checkpoint_at
    sealed = [move.saga for move in tender.moves.values() if move.saga.sealed_step is not None]
    return (sealed[-1].sealed_step, sealed[-1].drained_at) if sealed else (None, None)


def _trouble(tender: RunTender) -> str | None:
    if tender.trouble is not None:
        return tender.trouble
    status = tender.status
    if status is None:
        return None
    notice = f"{status.notice_from}: " if status.notice_until is not None else None
    others = [line for line in status.warnings if notice is None or not line.startswith(notice)]
    return others[-1] if others else None  # a notice has a place of its own


def show_move(move: Move, tender: RunTender, now: float) -> MigrationView:
    """One migration as every surface shows it."""
    return view(
        move.saga,
        run_name=tender.record.spec.name,
        as_of=now,
        bytes_state=0 if tender.status is None else tender.status.state_bytes,
        receipt=move.receipt_key(),
        futures=move.futures,
        going=move.going,
        waiting=move.waiting,
    )


def show_cost(tender: RunTender, places: Places, now: float) -> CostView:
    """Every attempt and every move's bytes; the total is the exact sum of the lines."""
    record = tender.record
    lines = cost_lines(record, tuple(tender.moves.values()), places, now)
    total = sum(line.amount_micro_usd for line in lines)
    return CostView(
        run_id=record.run_id,
        lines=lines,
        total_micro_usd=total,
        price_micro_usd_per_h=0 if record.ended is not None else record.price_micro_usd_per_h(),
        simulated=any(line.simulated for line in lines),
        as_of=now,
        saves=None if tender.status is None else tender.status.saves,
        budget=standing(tender, total),
    )


def show_series(tender: RunTender, curve: Series, *, now: float) -> Series:
    """A telemetry curve with the run's cost curve and its moves added."""
    record = tender.record
    cost_at, cost_usd, usd_per_h = _cost_curve(record, now)
    return Series(
        run_id=record.run_id,
        at=curve.at,
        step=curve.step,
        loss=curve.loss,
        tokens_per_s=curve.tokens_per_s,
        generation=curve.generation,
        cost_at=cost_at,
        cost_usd=cost_usd,
        usd_per_h=usd_per_h,
        moves=tuple(mark for move in tender.moves.values() if (mark := _mark(move)) is not None),
        simulated=any(attempt.started.simulated for attempt in record.attempts.values()),
    )


def _cost_curve(
    record: RunRecord, now: float
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Cost so far and price per hour at every moment the price changed, and now."""
    until = record.ended.at if record.ended is not None else now
    attempts = tuple(record.attempts.values())
    edges = {attempt.started.at for attempt in attempts} | {until}
    edges |= {attempt.ended_at for attempt in attempts if attempt.ended_at is not None}
    at = tuple(sorted(edge for edge in edges if edge <= until))
    spent = tuple(sum(_cost_by(attempt, edge) for attempt in attempts) / MICRO for edge in at)
    price = tuple(
        sum(a.started.price_micro_usd_per_h for a in attempts if _runs_at(a, edge)) / MICRO
        for edge in at
    )
    return at, spent, price


def _cost_by(attempt: Attempt, at: float) -> float:
    until = at if attempt.ended_at is None else min(at, attempt.ended_at)
    return attempt.started.price_micro_usd_per_h * max(0.0, until - attempt.started.at) / HOUR_S


def _runs_at(attempt: Attempt, at: float) -> bool:
    return attempt.started.at <= at and (attempt.ended_at is None or at < attempt.ended_at)


def _mark(move: Move) -> MoveMark | None:
    """A move once it has carried the run over."""
    saga = move.saga
    if not saga.is_committed:
        return None
    at = next(entry.at for entry in saga.timeline if entry.phase == "committed")
    return MoveMark(
        migration_id=saga.plan.migration_id,
        at=at,
        step=saga.sealed_step,
        source=saga.plan.source.target,
        target=saga.target.target,
    )
