"""A proposed move: its bill, who decided, and how far it got."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

from cloudshift_lab.core.approval import planned_pause_s
from cloudshift_lab.core.money import format_bytes, format_duration, format_usd
from cloudshift_lab.core.plan import (
    FINAL_PHASES,
    Bill,
    BillItem,
    MigrationView,
    Phase,
    PhaseTime,
    Plan,
)
from cloudshift_lab.lab.render.figures import clock, rate
from cloudshift_lab.lab.render.markup import (
    ERROR,
    SIMULATED,
    Markup,
    box,
    dim,
    next_command,
    simulated_badge,
    table,
    tag,
    text_table,
)
from cloudshift_lab.lab.render.outlook import (
    closings_html,
    closings_text,
    futures_html,
    futures_text,
    promises,
)
from cloudshift_lab.lab.render.standing import (
    awaits_decision,
    phase_title,
    standing_lines,
    state_line,
)

HEAD = ("bill", "amount", "basis", "source", "as of")
NUMERIC = frozenset({1})
_OFF_THE_PATH = ("rejected", "expired", "asking", "rolling_back", "rolled_back")


def path_of(plan: Plan) -> tuple[str, ...]:
    """The phases of this plan when nothing goes wrong and nobody is asked again."""
    left_out = set(_OFF_THE_PATH)
    if not plan.rehearsal_steps:
        left_out.add("rehearsing")
    if plan.closing == "replay":
        left_out.add("copying")
    return tuple(phase for phase in get_args(Phase) if phase not in left_out)


def move_text(view: MigrationView, prompt: str) -> str:
    """The plan with its bill and progress as lines of text."""
    bill = view.plan.bill
    lines = [
        _headline(view) + (f"  [{SIMULATED}]" if bill.simulated else ""),
        *(f"  {line}" for line in _bill_text(bill)),
        *(f"  {line}" for line in _terms(view)),
        *(f"  {line}" for line in closings_text(view.plan)),
        *(f"  {line}" for line in promises(view.plan)),
        *(f"  {line}" for line in _futures_text(view)),
        f"  {state_line(view)}",
        *(f"  {line}" for line in standing_lines(view)),
    ]
    if view.phase != "proposed":
        lines += [f"  {line}" for line in timeline_text(view)]
    return "\n".join([*lines, *(f"  next: {line}" for line in _next(view, prompt))])


def decided_text(view: MigrationView, prompt: str) -> str:
    """A move that was just decided, in brief: its bill was shown before."""
    lines = [_headline(view), f"  {state_line(view)}"]
    lines += [f"  {line}" for line in standing_lines(view)]
    return "\n".join([*lines, *(f"  next: {line}" for line in _next(view, prompt))])


def move_html(view: MigrationView) -> str:
    """The plan with its bill and progress as HTML, readable when saved."""
    bill = view.plan.bill
    style = ERROR if view.error else "font-weight:600"
    return box(
        f"move of {view.run_name} to {view.plan.target.target}",
        tag("div", tag("strong", _headline(view)), simulated_badge(simulated=bill.simulated)),
        table(HEAD, _bill_rows(bill), NUMERIC),
        *(dim(line) for line in _terms(view)),
        closings_html(view.plan),
        *(dim(line) for line in promises(view.plan)),
        futures_html(view.futures),
        tag("div", state_line(view), style=style, role="status"),
        *(tag("div", line) for line in standing_lines(view)),
        timeline_html(view) if view.phase != "proposed" else None,
        *(next_command(line) for line in _next(view, "%cloudshift")),
    )


def timeline_text(view: MigrationView) -> list[str]:
    """One line per phase entered, with how long it took."""
    return [
        f"{clock(entry.at)}  {phase_title(entry.phase):<15} {took}  {entry.detail}".rstrip()
        for entry, took in _timed(view)
    ]


def timeline_html(view: MigrationView) -> Markup:
    """The phases passed, with how long each took, and those ahead."""
    entries = _timed(view)
    reached = {entry.phase for entry, _ in entries}
    is_over = view.phase in FINAL_PHASES or view.phase == "rolling_back"
    ahead = [] if is_over else [phase for phase in path_of(view.plan) if phase not in reached]
    current = None if view.phase in FINAL_PHASES else len(entries) - 1
    steps = [
        tag(
            "li",
            f"{'▸' if at == current else '✓'} {phase_title(entry.phase)} {took}".rstrip(),
            title=entry.detail or None,
        )
        for at, (entry, took) in enumerate(entries)
    ]
    steps += [tag("li", f"· {phase_title(phase)}") for phase in ahead]
    style = "list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;padding:0;margin:4px 0"
    return tag("ol", *steps, style=style, aria_label="phases of the move")


def _futures_text(view: MigrationView) -> list[str]:
    """Futures matter to whoever decides; afterwards there is what happened."""
    return futures_text(view.futures) if awaits_decision(view) else []


def _timed(view: MigrationView) -> list[tuple[PhaseTime, str]]:
    entries = view.timeline
    spans = [format_duration(max(0.0, after.at - before.at)) for before, after in pairwise(entries)]
    ended = view.phase in FINAL_PHASES or not entries or not view.as_of
    last = "" if ended else f"{format_duration(max(0.0, view.as_of - entries[-1].at))} so far"
    return list(zip(entries, [*spans, last], strict=False))


def _headline(view: MigrationView) -> str:
    plan = view.plan
    return f"Move {view.run_name} from {plan.source.target} to {plan.target.target}"


def _bill_rows(bill: Bill) -> list[tuple[str, ...]]:
    rows = [
        (item.label, _amount(item), item.basis, _source(item), item.as_of) for item in bill.items
    ]
    return [*rows, ("total", format_usd(bill.total_micro_usd), "sum of the lines", "", "")]


def _bill_text(bill: Bill) -> list[str]:
    """The bill for a terminal: sources are numbered, and named below."""
    named = [_dated(item) for item in bill.items]
    numbers = {source: f"[{n}]" for n, source in enumerate(dict.fromkeys(named), 1)}
    marks = [*(numbers[source] for source in named), ""]
    rows = [(*row[:3], mark) for row, mark in zip(_bill_rows(bill), marks, strict=True)]
    sources = (f"{mark} {source}" for source, mark in numbers.items())
    return [*text_table(HEAD[:4], rows, NUMERIC), *sources]


def _amount(item: BillItem) -> str:
    return "" if item.kind == "note" else format_usd(item.amount_micro_usd)


def _source(item: BillItem) -> str:
    unmarked = item.simulated and SIMULATED not in item.source
    return f"{item.source}, {SIMULATED}" if unmarked else item.source


def _dated(item: BillItem) -> str:
    source = _source(item)
    return source if not item.as_of or item.as_of in source else f"{source}, as of {item.as_of}"


def _terms(view: MigrationView) -> list[str]:
    bill, plan = view.plan.bill, view.plan
    if bill.break_even_s is None:
        even = "never pays for itself"
    else:
        even = f"pays for itself after {format_duration(bill.break_even_s)}"
    saving = bill.saving_micro_usd_per_h
    word = "saves" if saving >= 0 else "costs"
    return [
        f"{word} {rate(abs(saving))} afterwards, one-off {format_usd(bill.one_off_micro_usd)}; "
        f"{even}",
        f"expected pause {format_duration(planned_pause_s(plan))}, "
        f"{format_bytes(bill.transfer_bytes)} to transfer",
        f"advice: {plan.verdict}",
        *(f"· {reason}" for reason in bill.reasons),
        f"plan {view.migration_id}, digest {plan.digest[:12]}",
    ]


def _next(view: MigrationView, prompt: str) -> list[str]:
    if awaits_decision(view):
        return [f"{prompt} approve {view.migration_id}", f"{prompt} reject {view.migration_id}"]
    return [] if view.phase in FINAL_PHASES else [f"{prompt} watch {view.run_name}"]
