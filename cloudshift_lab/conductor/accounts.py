"""A run's account: its ledger from journal, sagas and telemetry, and what is told beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from cloudshift_lab.conductor.looking_back import story_of
from cloudshift_lab.conductor.moves import Move, Surroundings
from cloudshift_lab.conductor.records import Attempt
from cloudshift_lab.conductor.spending import carried_bytes, carried_lines
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.conductor.wellbeing import course_so_far
from cloudshift_lab.core.costs import Account, BillCheck, CostEntry, Finish, Ledger
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.plan import Phase
from cloudshift_lab.market.estimate import num_requests
from cloudshift_lab.market.finish import finish_at_step, pace_blocks
from cloudshift_lab.market.hindsight import otherwise
from cloudshift_lab.market.ledger import (
    ASKS,
    COPIES,
    DRAINS,
    PAUSE,
    REHEARSES,
    STARTS,
    TRAINING,
    Carried,
    Stay,
    Use,
    Work,
    account,
)
from cloudshift_lab.market.settling import Measured, check_bill
from cloudshift_lab.migration import Saga
from cloudshift_lab.telemetry.store import TelemetryStore
from cloudshift_lab.telemetry.work import Done, work_done

_POINTS = 240
_PARTS: Mapping[Phase, str] = {
    "approved": STARTS, "provisioning": STARTS, "precopying": COPIES, "rehearsing": REHEARSES,
    "asking": ASKS, "draining": DRAINS, "rolling_back": "the move is undone",
}  # fmt: skip


class Accountant:
    """Keeps the accounts of all runs of a conductor.

    Args:
        around: What the runs share.
        telemetry: What their time went into.
    """

    def __init__(self, around: Surroundings, telemetry: TelemetryStore) -> None:
        self._around = around
        self._telemetry = telemetry

    def account(self, tender: RunTender, now: float, *, until_step: int | None = None) -> Account:
        """A run's ledger, and what can be told beside it.

        Args:
            tender: The run.
            now: Wall-clock seconds.
            until_step: The step that it is to reach, for the forecast; None: no forecast.

        Raises:
            UsageError: It is past that step.
            Corrupt: Its journal, or what prices were seen, is damaged.
        """
        done = work_done(self._telemetry, tender.run_id)
        ledger = self._ledger(tender, now, done)
        finish = None if until_step is None else self._finish(tender, ledger, until_step, now)
        story = story_of(tender, self._around, ledger, done)
        return Account(
            run_id=tender.run_id,
            name=tender.record.spec.name,
            ledger=ledger,
            finish=finish,
            otherwise=() if story is None else otherwise(story),
            checks=tuple(self._checks(tender, ledger.entries)),
            notes=tuple(
                _notes(ledger, done, is_open=tender.record.ended is None and finish is None)
            ),
        )

    def charges(self, tender: RunTender, now: float) -> tuple[CostEntry, ...]:
        """The same ledger, cut at every full hour."""
        return self._ledger(tender, now, (), every_s=HOUR_S).entries

    def _ledger(
        self, tender: RunTender, now: float, done: Sequence[Done], *, every_s: float | None = None
    ) -> Ledger:
        folder = self._around.run_folder(tender.run_id)
        course = course_so_far(self._telemetry, tender, folder, now)
        with tender.lock:
            moves = tuple(tender.moves.values())
            stays = tuple(stays_of(tender.record.attempts, moves, now))
            carried = tuple(self._carried(moves))
            uses = _started(tender) if course is None else tuple(
                Use(span.cause, span.begin_s, span.end_s) for span in course.spans
            )  # fmt: skip
        return account(stays, uses, carried, work=_work(done), every_s=every_s)

    def _carried(self, moves: Sequence[Move]) -> Iterator[Carried]:
        lines = carried_lines(moves, self._around.places)
        for move in moves:
            found, saga = lines[move.opened.migration_id], move.saga
            if not found:
                continue
            egress, requests = found
            begin = _entered(saga, "precopying") or saga.timeline[0].at
            yield Carried(
                migration_id=move.opened.migration_id,
                source=move.plan.source,
                begin=begin,
                end=max(begin, _resumed_at(saga) or saga.timeline[-1].at),
                num_bytes=carried_bytes(move),
                egress_micro_usd=egress.amount_micro_usd,
                egress_basis=egress.basis,
                num_requests=num_requests(carried_bytes(move)),
                requests_micro_usd=requests.amount_micro_usd,
                requests_basis=requests.basis,
                simulated=egress.simulated,
            )

    def _finish(
        self, tender: RunTender, ledger: Ledger, until_step: int, now: float
    ) -> Finish | None:
        if tender.record.ended is not None:
            return None
        curve = self._telemetry.step_curve(tender.run_id, _POINTS)
        return finish_at_step(
            pace_blocks(curve.at, curve.step),
            step=curve.step[-1] if curve.step else 0,
            until_step=until_step,
            spent_micro_usd=ledger.total_micro_usd,
            micro_usd_per_h=tender.record.price_micro_usd_per_h(),
            now=now,
        )

    def _checks(self, tender: RunTender, entries: Sequence[CostEntry]) -> Iterator[BillCheck]:
        for move in tuple(tender.moves.values()):
            inputs, saga = move.inputs, move.saga
            if inputs is None or not saga.is_committed or saga.pause_s is None:
                continue
            measured = _measured(move, tender.record.attempts, entries)
            yield from check_bill(
                move.opened.migration_id, saga.plan.bill, inputs, measured, entries
            )


def stays_of(attempts: Mapping[int, Attempt], moves: Sequence[Move], now: float) -> Iterator[Stay]:
    """Every attempt as it is paid, with the part of its time in which the run was its.

    Args:
        attempts: By generation.
        moves: Of the run.
        now: Wall-clock seconds; until then is paid what has not ended.
    """
    took = {move.plan.generation: move for move in moves if move.saga.is_committed}
    began = {generation: move for move in moves for generation in move.generations}
    for generation, attempt in attempts.items():
        started = attempt.started
        end = max(started.at, now if attempt.ended_at is None else attempt.ended_at)
        before = began.get(generation) if started.migration_id else None
        after = took.get(generation)
        yield Stay(
            generation=generation,
            placement=attempt.job.placement,
            micro_usd_per_h=started.price_micro_usd_per_h,
            begin=started.at,
            end=end,
            works_from=started.at if before is None else _works_from(before, generation),
            works_until=end if after is None else after.saga.drained_at or end,
            beside=tuple(
                use for move in (before, after) if move is not None for use in _beside(move.saga)
            ),
            migration_id=started.migration_id or "",
            next_migration_id="" if after is None else after.opened.migration_id,
            source=started.price_source,
            simulated=started.simulated,
        )


def _works_from(move: Move, generation: int) -> float:
    """When a move's target became the run's owner in fact; never, if it did not."""
    if not move.saga.is_committed or generation != move.generations[-1]:
        return math.inf
    resumed_at = _resumed_at(move.saga)
    return math.inf if resumed_at is None else resumed_at


def _resumed_at(saga: Saga) -> float | None:
    """When the first new step of a move ended; None before that."""
    if saga.drained_at is None or saga.pause_s is None:
        return None
    return saga.drained_at + saga.pause_s


def _beside(saga: Saga) -> Iterator[Use]:
    """What a move's time went into, as its target is paid for it, and its source in the pause."""
    drained_at = math.inf if saga.drained_at is None else saga.drained_at
    ends = [entry.at for entry in saga.timeline[1:]] + [math.inf]
    for entry, end in zip(saga.timeline, ends, strict=True):
        part = _PARTS.get(entry.phase)
        if part is not None and entry.at < drained_at:
            yield Use(part, entry.at, min(end, drained_at))
    if saga.drained_at is not None:
        resumed_at = _resumed_at(saga)
        yield Use(PAUSE, saga.drained_at, math.inf if resumed_at is None else resumed_at)


def _entered(saga: Saga, phase: Phase) -> float | None:
    return next((entry.at for entry in saga.timeline if entry.phase == phase), None)


def _started(tender: RunTender) -> tuple[Use, ...]:
    """Of a run without telemetry: its start, as far as its agent tells."""
    begin, status = tender.owner.at, tender.status
    first_step_at = None if status is None else status.first_step_at
    if tender.record.ended is not None and first_step_at is None:
        return ()
    return (Use("starting", begin, math.inf if first_step_at is None else first_step_at),)


def _measured(
    move: Move, attempts: Mapping[int, Attempt], entries: Sequence[CostEntry]
) -> Measured:
    """What a finished move was: its saga's phases, as far as a target was paid in them."""
    saga, generation = move.saga, move.generations[-1]
    lasted: dict[str, float] = {}
    for attempt in (attempts[each] for each in move.generations if each in attempts):
        paid_until = math.inf if attempt.ended_at is None else attempt.ended_at
        for use in _beside(saga):
            both_s = min(use.end, paid_until) - max(use.begin, attempt.started.at)
            lasted[use.part] = lasted.get(use.part, 0.0) + max(0.0, both_s)
    return Measured(
        generation=generation,
        num_bytes=saga.bytes_moved,
        num_requests=num_requests(saga.bytes_moved) if saga.bytes_moved else 0,
        starts_s=lasted.get(STARTS, 0.0),
        copies_s=lasted.get(COPIES, 0.0),
        rehearses_s=lasted.get(REHEARSES, 0.0),
        pause_s=saga.pause_s or 0.0,
        trained_s=sum(
            entry.seconds
            for entry in entries
            if entry.generation == generation and not entry.migration_id
        ),
    )


def _work(done: Sequence[Done]) -> Work:
    counted = [each.tokens for each in done]
    tokens = sum(each for each in counted if each is not None)
    is_counted = bool(counted) and None not in counted
    return Work(sum(each.steps for each in done), tokens if is_counted else None)


def _notes(ledger: Ledger, done: Sequence[Done], *, is_open: bool) -> Iterator[str]:
    if not done:
        yield "no step has been reported yet: time is not split further"
    elif ledger.tokens is None:
        yield "its script does not count tokens: there is no price of a million of them"
    if not any(entry.part == TRAINING for entry in ledger.entries):
        yield "nothing has been trained yet"
    if is_open:
        yield "how long it goes on is not known: say up to which step for a forecast"
