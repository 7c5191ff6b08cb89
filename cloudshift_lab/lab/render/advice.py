"""Advice as a sheet: the same in a terminal, a notebook and the dashboard."""

from __future__ import annotations

from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.core.plan import Bill
from cloudshift_lab.lab.render.sheet import Sheet, Table
from cloudshift_lab.market.advice import Advice, Option

_MOST_OPTIONS = 8
_MOST_REJECTED = 5


def advice_sheet(advice: Advice, *, following: tuple[str, ...] = ()) -> Sheet:
    """The verdict, its bill, what would change it, and what else there was."""
    tables = []
    if advice.bill is not None and advice.target is not None:
        title = f"What moving from {advice.here.place} to {advice.target.place} costs (- saves)"
        tables.append(_bill_table(advice.bill, title))
        tables.append(_figures(advice))
    if len(advice.options) > 1:
        tables.append(_options(advice.options))
    if advice.rejected:
        tables.append(_rejected(advice))
    title = f"simulated: {advice.because}" if advice.simulated else advice.because
    return Sheet(
        label="advice", title=title, tables=tuple(tables), notes=_notes(advice),
        following=following if advice.verdict == "move" else (),
    )  # fmt: skip


def _bill_table(bill: Bill, title: str) -> Table:
    rows = [
        (item.label, format_usd(item.amount_micro_usd), item.basis)
        for item in bill.items
        if item.kind != "note"
    ]
    rows.append(("total", format_usd(bill.total_micro_usd), ""))
    return Table(("line", "amount", "how it is reckoned"), rows, frozenset({1}), title)


def _figures(advice: Advice) -> Table:
    net = advice.net
    low, mid, high = (format_usd(round(value)) for value in (net.p10, net.p50, net.p90))
    rows = [
        ("saves", f"{mid} (P10 {low}, P90 {high})"),
        ("chance that it saves anything", f"{advice.chance:.0%}"),
        ("has paid for itself after", _break_even(advice.break_even_h)),
    ]
    if advice.margin_h is not None:
        stay, move = (_margin(hours) for hours in advice.margin_h)
        rows.append(("before the deadline", f"{stay} when staying, {move} when moving"))
    return Table(("figure", "value"), rows)


def _options(options: tuple[Option, ...]) -> Table:
    rows = [
        (
            each.quote.place, each.quote.instance_type, each.quote.market,
            f"{format_usd(each.quote.micro_usd_per_h)}/h", format_usd(round(each.net.p50)),
            f"{each.chance:.0%}", each.reason,
        )
        for each in options[:_MOST_OPTIONS]
    ]  # fmt: skip
    more = len(options) - _MOST_OPTIONS
    title = "All offers" if more <= 0 else f"The best {_MOST_OPTIONS} of {len(options)} offers"
    head = ("place", "machine", "market", "node", "saves", "chance", "why")
    return Table(head, rows, frozenset({3, 4, 5}), title)


def _rejected(advice: Advice) -> Table:
    rows = [(each.what, each.reason) for each in advice.rejected[:_MOST_REJECTED]]
    if len(advice.rejected) > _MOST_REJECTED:
        rows.append((f"{len(advice.rejected) - _MOST_REJECTED} more", "like these"))
    return Table(("not considered", "why"), rows)


def _notes(advice: Advice) -> tuple[str, ...]:
    flips = [f"{flip.then.capitalize()} instead if {flip.condition}." for flip in advice.flips_if]
    assumed = [f"Assumed: {each}." for each in advice.assumptions]
    alone = []
    if advice.verdict == "move" and not advice.may_act_alone:
        alone = [
            "Nobody is moved by this alone: a price in it is older than a day, an estimate or "
            "from the table in the package. market prices --refresh asks again."
        ]
    return (*flips, *assumed, *alone)


def _break_even(hours: float | None) -> str:
    return "never" if hours is None else f"{format_duration(hours * 3600)} of training"


def _margin(hours: float) -> str:
    span = format_duration(abs(hours) * 3600)
    return f"{span} late" if hours < 0 else f"{span} to spare"
