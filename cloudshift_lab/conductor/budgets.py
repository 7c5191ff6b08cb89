"""Keeping runs within their budgets: alarms on the way, and a save before the stop at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudshift_lab.conductor.records import BudgetAlarm, BudgetSet, RunRecord
from cloudshift_lab.conductor.spending import spent_micro_usd
from cloudshift_lab.core.costs import Alarm, Budget
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import format_usd
from cloudshift_lab.market.budget import (
    budget_words,
    check_budget,
    is_used_up,
    lasts_s,
    new_levels,
    reserve_micro_usd,
)

if TYPE_CHECKING:  # it calls us
    from cloudshift_lab.conductor.moves import Surroundings
    from cloudshift_lab.conductor.tending import RunTender


def keep_budget(tender: RunTender, around: Surroundings) -> bool:
    """Raise the alarms that are due, and have the run saved and stopped where it must be.

    What is paid for is written down meanwhile, wherever a price has changed.

    Returns:
        Whether there is something new to see.

    Raises:
        Exhausted: A journal's disk is full; nothing was told.
        Corrupt: What prices were seen is damaged; the budget is kept all the same.
    """
    is_news = _watch(tender, around)
    around.prices.look()
    return is_news


def _watch(tender: RunTender, around: Surroundings) -> bool:
    record, now = tender.record, around.world.now()
    budget = record.budget_micro_usd
    if budget is None or record.stop_asked is not None or record.ended is not None:
        return False
    spent = spent_micro_usd(record, tuple(tender.moves.values()), around.places, now)
    due = new_levels(budget, spent, record.alarms_told(budget))
    with tender.lock:
        for percent in due:
            record.keep(BudgetAlarm(Alarm(percent, now, spent, budget)))
    if is_used_up(budget, spent, _reserve(tender, budget)):
        tender.ask_to_stop(used_up_words(record, budget))
    return bool(due)


def used_up_words(record: RunRecord, budget_micro_usd: int) -> str:
    """Why a run was stopped, or does not go on, and what to do."""
    return (
        f"the budget of {format_usd(budget_micro_usd)} is used up; to train on give it more: "
        f"cost {record.spec.name} --budget USD"
    )


def is_spent(tender: RunTender, around: Surroundings) -> bool:
    """Whether nothing is left of a run's budget to train with."""
    budget, now = tender.record.budget_micro_usd, around.world.now()
    if budget is None:
        return False
    spent = spent_micro_usd(tender.record, tuple(tender.moves.values()), around.places, now)
    return is_used_up(budget, spent, _reserve(tender, budget))


def set_budget(tender: RunTender, micro_usd: int, around: Surroundings) -> None:
    """Give a run another budget.

    Raises:
        UsageError: That much is spent already, or the run has finished.
        Exhausted: The journal's disk is full; nothing changed.
    """
    record, now = tender.record, around.world.now()
    if record.ended is not None and record.ended.state == "finished":
        raise UsageError(f"{record.run_id} has finished; it spends nothing any more")
    with tender.lock:
        spent = spent_micro_usd(record, tuple(tender.moves.values()), around.places, now)
        check_budget(micro_usd, spent)
        record.keep(BudgetSet(at=now, micro_usd=micro_usd))


def standing(tender: RunTender, spent: int) -> Budget | None:
    """How a run stands with its budget; None: it has none."""
    record = tender.record
    budget = record.budget_micro_usd
    if budget is None:
        return None
    price = 0 if record.ended is not None else record.price_micro_usd_per_h()
    left_s = lasts_s(budget, spent, price, _reserve(tender, budget))
    return Budget(
        micro_usd=budget,
        spent_micro_usd=spent,
        share=spent / budget,
        lasts_s=left_s,
        alarms=tuple(record.alarms),
        words=budget_words(budget, spent, left_s),
    )


def _reserve(tender: RunTender, budget: int) -> int:
    """What the last save will cost, by how long the newest one took."""
    price = tender.record.price_micro_usd_per_h() or tender.owner.price_micro_usd_per_h
    save_s = None if tender.status is None else tender.status.saves.save_s
    return reserve_micro_usd(budget, price, save_s)
