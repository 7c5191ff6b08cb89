"""What a run has cost: its ledger, other ways, bills beside the ledger, its budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from math import isinf

from cloudshift_lab.core.costs import COST_KINDS, Account, BillCheck, Finish, Ledger, Otherwise
from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.core.views import CostLine, CostView
from cloudshift_lab.lab.render.figures import clock, rate
from cloudshift_lab.lab.render.markup import SIMULATED
from cloudshift_lab.lab.render.saves import saves_lines
from cloudshift_lab.lab.render.sheet import Sheet, Table

LINES_HEAD = ("spent on", "where", "amount", "basis")
KINDS_HEAD = ("went into", "amount", "share", "paid for")
WAYS_HEAD = ("the same work", "cost", "it cost more by", "where it would have been")
CHECKS_HEAD = ("move", "line of its bill", "forecast", "as measured", "ledger", "apart")
_KINDS = {"lost_work": "lost work", "overlap": "both sides of a move"}


def cost_sheet(view: CostView, name: str, prompt: str) -> Sheet:
    """All that is known of a run's cost."""
    account = view.account
    tables = [Table(LINES_HEAD, [*_lines(view)], frozenset({2}))]
    if account is not None:
        tables += [*_accounted(account)]
    return Sheet(
        f"cost of {name}",
        f"cost of {name}: {format_usd(view.total_micro_usd)}"
        + (f" [{SIMULATED}]" if view.simulated else "")
        + f", now {rate(view.price_micro_usd_per_h)}; as of {clock(view.as_of)}",
        tuple(tables),
        notes=(*_notes(view), *saves_lines(view.saves)),
        troubles=_alarms(view),
        following=(f"{prompt} cost {name} --export costs.csv",),
    )


def _lines(view: CostView) -> Iterator[tuple[str, ...]]:
    for line in view.lines:
        yield line.label, line.target, format_usd(line.amount_micro_usd), _basis(line)
    yield "total", "", format_usd(view.total_micro_usd), "sum of the lines"


def _basis(line: CostLine) -> str:
    unmarked = line.simulated and SIMULATED not in line.basis
    return f"{line.basis}, {SIMULATED}" if unmarked else line.basis


def _accounted(account: Account) -> Iterator[Table]:
    yield Table(KINDS_HEAD, [*_kinds(account.ledger)], frozenset({1, 2}), title="What it went into")
    yield Table(
        WAYS_HEAD, [_way(each) for each in account.otherwise], frozenset({1, 2}),
        title="In other ways, at the prices that were recorded",
    )  # fmt: skip
    yield Table(
        CHECKS_HEAD, [_check(each) for each in account.checks], frozenset({2, 3, 4, 5}),
        title="Bills of its moves beside the ledger",
    )  # fmt: skip


def _kinds(ledger: Ledger) -> Iterator[tuple[str, ...]]:
    for kind in COST_KINDS:
        amount = ledger.by_kind.get(kind, 0)
        if amount:
            share = amount / ledger.total_micro_usd
            yield _KINDS.get(kind, kind), format_usd(amount), f"{share:.1%}", _parts(ledger, kind)


def _parts(ledger: Ledger, kind: str) -> str:
    """What a kind is made of, with the time that was paid."""
    found: dict[str, float] = {}
    for entry in ledger.entries:
        if entry.kind == kind:
            found[entry.part] = found.get(entry.part, 0.0) + entry.seconds
    return ", ".join(
        f"{part} {format_duration(seconds)}" if seconds else part for part, seconds in found.items()
    )


def _way(each: Otherwise) -> tuple[str, ...]:
    saved = f"{format_usd(each.regret_micro_usd)}"
    return each.name, format_usd(each.micro_usd), saved, each.basis


def _check(each: BillCheck) -> tuple[str, ...]:
    apart = each.apart
    amounts = (each.forecast_micro_usd, each.settled_micro_usd, each.ledger_micro_usd)
    return (
        each.migration_id, each.label, *(format_usd(amount) for amount in amounts),
        "-" if apart is None else "missing" if isinf(apart) else f"{apart:+.2%}",
    )  # fmt: skip


def _notes(view: CostView) -> Iterator[str]:
    if view.budget is not None:
        yield view.budget.words
    account = view.account
    if account is None:
        return
    ledger = account.ledger
    if ledger.micro_usd_per_million_tokens is not None:
        yield (
            f"{format_usd(ledger.micro_usd_per_million_tokens)} per million tokens "
            f"({ledger.tokens:,} in {ledger.steps:,} kept steps)"
        )
    if account.finish is not None:
        yield from _finish(account.finish)
    if account.otherwise:
        yield (
            "other ways do the work that was kept, with the starts, saves and failures that it "
            "had; they assume that every place had machines"
        )
    if account.checks:
        yield (
            "as measured: the bill's own arithmetic with the bytes and durations that the move "
            "took; apart: how far that is from the ledger"
        )
    yield from account.notes


def _finish(finish: Finish) -> Iterable[str]:
    low, mid, high = (
        format_usd(round(each))
        for each in (finish.total_micro_usd.p10, finish.total_micro_usd.p50,
                     finish.total_micro_usd.p90)
    )  # fmt: skip
    at = finish.finish_at
    return (
        f"at step {finish.step:,}: {mid} in all ({low} to {high}, P10 to P90), at {_when(at.p50)} "
        f"({_when(at.p10)} to {_when(at.p90)})",
        finish.basis,
    )


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _alarms(view: CostView) -> tuple[str, ...]:
    """The highest level that the present budget has reached."""
    if view.budget is None:
        return ()
    reached = [
        each for each in view.budget.alarms if each.budget_micro_usd == view.budget.micro_usd
    ]
    return tuple(
        f"{alarm.percent} % of the budget was spent at {_when(alarm.at)}" for alarm in reached[-1:]
    )
