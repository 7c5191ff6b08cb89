"""What a plan says of a move before it: closings, rehearsal, missing nodes, simulated futures."""

from __future__ import annotations

from cloudshift_lab.core.money import format_bytes, format_duration, format_usd
from cloudshift_lab.core.plan import Closing, Futures, Plan, Spread
from cloudshift_lab.lab.render.markup import (
    SIMULATED,
    Markup,
    dim,
    join,
    simulated_badge,
    table,
    tag,
    text_table,
)

CLOSING_HEAD = ("closing", "pause", "nothing computed", "on the wire", "repeats", "known from")
CLOSING_NUMERIC = frozenset({1, 2, 3})
FUTURES_NUMERIC = frozenset({1, 2, 3})
BAR_WIDTH, BAR_HEIGHT = 120, 12
NO_PAUSE = "none of them arrived"


def closings_text(plan: Plan) -> list[str]:
    """Every way that was weighed, the chosen one marked; nothing when none was."""
    if not plan.closings:
        return []
    return text_table(CLOSING_HEAD, _closing_rows(plan), CLOSING_NUMERIC)


def closings_html(plan: Plan) -> Markup | None:
    """The same as a table."""
    if not plan.closings:
        return None
    return table(CLOSING_HEAD, _closing_rows(plan), CLOSING_NUMERIC)


def closing_name(kind: str) -> str:
    """What a way to close the gap does, in two words."""
    return {"copy": "copy bytes", "replay": "repeat steps"}.get(kind, kind)


def promises(plan: Plan) -> list[str]:
    """What is done before the commit and when something is missing, a sentence each."""
    return [
        line
        for line in (_rehearsal(plan), _missing_nodes(plan), _limit(plan), _approvals(plan))
        if line
    ]


def futures_text(futures: Futures | None) -> list[str]:
    """The distribution of simulated outcomes; nothing when none was simulated."""
    if futures is None:
        return []
    rows = text_table(_futures_head(futures), _futures_rows(futures), FUTURES_NUMERIC)
    return [*rows, _shares(futures), f"{SIMULATED}: {futures.basis}"]


def futures_html(futures: Futures | None) -> Markup | None:
    """The same, each row with a bar from a tenth to nine tenths and a mark at the half."""
    if futures is None:
        return None
    spreads = (futures.pause_s, futures.cost_micro_usd, futures.finish_s)
    rows = [
        (*row, "" if spread is None else range_svg(spread, _range_label(row)))
        for row, spread in zip(_futures_rows(futures), spreads, strict=True)
    ]
    title = tag("div", _title(futures), simulated_badge(simulated=True))
    shares = tag("div", _shares(futures))
    parts = [table((*_futures_head(futures), ""), rows, FUTURES_NUMERIC), shares]
    return tag("div", join([title, *parts, dim(futures.basis)]))


def _range_label(row: tuple[str, ...]) -> str:
    return f"{row[0]}: {row[1]} to {row[3]}, half below {row[2]}"


def range_svg(spread: Spread, label: str) -> Markup:
    """A line from p10 to p90 with a mark at p50, on a scale from 0 to a little above p90."""
    most = max(spread.p90, 1e-9) * 1.08
    low, half, high = (
        f"{2 + max(0.0, value) / most * (BAR_WIDTH - 4):.1f}"
        for value in (spread.p10, spread.p50, spread.p90)
    )
    middle = str(BAR_HEIGHT // 2)
    ink = "stroke:var(--jp-brand-color1,#1976d2)"
    line = tag("line", x1=low, x2=high, y1=middle, y2=middle, stroke_width="2", style=ink)
    mark = tag("line", x1=half, x2=half, y1="1", y2=str(BAR_HEIGHT - 1), stroke_width="3",
               style=ink)  # fmt: skip
    return tag("svg", line, mark, width=str(BAR_WIDTH), height=str(BAR_HEIGHT), role="img",
               aria_label=label, viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
               style="vertical-align:middle")  # fmt: skip


def share(part: float) -> str:
    """A share of futures: ``0 %``, ``0.4 %``, ``12 %``."""
    percent = part * 100
    return f"{percent:.0f} %" if percent == 0 or percent >= 9.95 else f"{percent:.1f} %"


def _closing_rows(plan: Plan) -> list[tuple[str, ...]]:
    return [_closing_row(way, chosen=way.kind == plan.closing) for way in plan.closings]


def _closing_row(way: Closing, *, chosen: bool) -> tuple[str, ...]:
    steps = "-" if not way.replayed_steps else f"{way.replayed_steps} steps"
    return (
        f"{'▸' if chosen else ' '} {closing_name(way.kind)}{' (chosen)' if chosen else ''}",
        format_duration(way.pause_s),
        format_duration(way.still_s),
        format_bytes(way.num_bytes),
        "1 step" if way.replayed_steps == 1 else steps,
        way.basis,
    )


def _rehearsal(plan: Plan) -> str:
    if not plan.rehearsal_steps:
        return "no rehearsal: the target's first step comes after the commit" * bool(plan.closings)
    count = "1 step" if plan.rehearsal_steps == 1 else f"{plan.rehearsal_steps} steps"
    return (
        f"rehearsal: the target computes {count} before the commit while the source trains; "
        f"each loss must equal the source's {_how_near(plan)}"
    )


def _how_near(plan: Plan) -> str:
    if not plan.tolerance:
        return "bit by bit"
    if plan.closing == "copy":
        return f"within {plan.tolerance:.2g} of its size"
    return f"bit by bit (if only within {plan.tolerance:.2g}, bytes are copied, no step repeated)"


def _missing_nodes(plan: Plan) -> str:
    nodes, policy = plan.target.nodes, plan.missing_nodes
    if nodes == 1 and policy == "roll-back":
        return ""
    places = ", then ".join(place.placement.target for place in plan.fallbacks)
    does = {
        "roll-back": "the move is rolled back",
        "wait": "it waits for them, and rolls back if they do not come",
        "shrink": f"it goes on with {plan.min_nodes} or more of {nodes}, else it is rolled back",
        "elsewhere": f"it goes to {places or 'no other place, so it is rolled back'}",
    }[policy]
    return f"if nodes are missing: {does}"


def _limit(plan: Plan) -> str:
    if not plan.limit_micro_usd:
        return ""
    limit = format_usd(plan.limit_micro_usd)
    return f"limit: the move itself may cost {limit}; above it is undone, up to the commit"


def _approvals(plan: Plan) -> str:
    if plan.approvals_needed < 2:
        return ""
    return f"{plan.approvals_needed} approvals are needed, each of another person or policy"


def _title(futures: Futures) -> str:
    return f"{futures.num:,} futures of this click"


def _futures_head(futures: Futures) -> tuple[str, ...]:
    return (f"in {futures.num:,} simulated futures", "1 in 10 below", "half below", "9 in 10 below")


def _futures_rows(futures: Futures) -> list[tuple[str, ...]]:
    pause, cost, finish = futures.pause_s, futures.cost_micro_usd, futures.finish_s
    return [
        ("pause", *((NO_PAUSE, "-", "-") if pause is None else _durations(pause))),
        ("cost of the move", *(format_usd(round(each)) for each in (cost.p10, cost.p50, cost.p90))),
        ("over after", *_durations(finish)),
    ]


def _durations(spread: Spread) -> tuple[str, str, str]:
    return (
        format_duration(spread.p10), format_duration(spread.p50), format_duration(spread.p90)
    )  # fmt: skip


def _shares(futures: Futures) -> str:
    return f"{share(futures.rolled_back)} are rolled back, {share(futures.lost_steps)} lose steps"
