"""A proposed move: its bill, who decided, and how far it got."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

from cloudshift_lab.core.money import format_bytes, format_duration, format_usd
from cloudshift_lab.core.plan import FINAL_PHASES, Bill, BillItem, MigrationView, Phase, PhaseTime
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

HEAD = ("bill", "amount", "basis", "source", "as of")
NUMERIC = frozenset({1})
HAPPY_PATH: tuple[str, ...] = tuple(
    phase for phase in get_args(Phase)
    if phase not in ("rejected", "expired", "rolling_back", "rolled_back")
)  # fmt: skip


def phase_title(phase: str) -> str:
    """A phase as people read it: ``source retired``."""
    return phase.replace("_", " ")


def move_text(view: MigrationView, prompt: str) -> str:
    """The plan with its bill and progress as lines of text."""
    bill = view.plan.bill
    lines = [
        _headline(view) + (f"  [{SIMULATED}]" if bill.simulated else ""),
        *(f"  {line}" for line in _bill_text(bill)),
        *(f"  {line}" for line in _terms(view)),
        f"  {state_line(view)}",
    ]
    if view.phase != "proposed":
        lines += [f"  {line}" for line in timeline_text(view)]
    return "\n".join([*lines, *(f"  next: {line}" for line in _next(view, prompt))])


def decided_text(view: MigrationView, prompt: str) -> str:
    """A move that was just decided, in brief: its bill was shown before."""
    lines = [_headline(view), f"  {state_line(view)}"]
    going = view.phase not in FINAL_PHASES
    return "\n".join([*lines, *([f"  next: {prompt} watch {view.run_name}"] if going else [])])


def move_html(view: MigrationView) -> str:
    """The plan with its bill and progress as HTML, readable when saved."""
    bill = view.plan.bill
    style = ERROR if view.error else "font-weight:600"
    return box(
        f"move of {view.run_name} to {view.plan.target.target}",
        tag("div", tag("strong", _headline(view)), simulated_badge(simulated=bill.simulated)),
        table(HEAD, _bill_rows(bill), NUMERIC),
        *(dim(line) for line in _terms(view)),
        tag("div", state_line(view), style=style, role="status"),
        timeline_html(view) if view.phase != "proposed" else None,
        *(next_command(line) for line in _next(view, "%cloudshift")),
    )


def state_line(view: MigrationView) -> str:
    """Where the move stands and who decided, in one sentence."""
    words = [f"state: {phase_title(view.phase)}"]
    if view.decision is not None:
        verb = "approved" if view.decision.verdict == "approve" else "rejected"
        at = f" at {clock(view.decision.at)}" if view.decision.at else ""
        words.append(f"{verb} by {view.decision.by}{at}")
    elif view.phase == "proposed":
        words.append(f"nothing happens without approval; expires at {clock(view.plan.expires_at)}")
    if view.sealed_step is not None:
        words.append(f"moved at step {view.sealed_step}")
    if view.pause_s is not None:
        words.append(f"pause {format_duration(view.pause_s)}")
    if view.bytes_moved:
        expected = format_bytes(view.plan.bill.transfer_bytes)
        words.append(f"{format_bytes(view.bytes_moved)} moved ({expected} expected)")
    if view.error:
        words.append(view.error)
    return " · ".join(words)


def timeline_text(view: MigrationView) -> list[str]:
    """One line per phase entered, with how long it took."""
    return [
        f"{clock(entry.at)}  {phase_title(entry.phase):<15} {took}  {entry.detail}".rstrip()
        for entry, took in _timed(view)
    ]


def timeline_html(view: MigrationView) -> Markup:
    """The phases passed, with how long each took, and those ahead."""
    reached = {entry.phase: took for entry, took in _timed(view)}
    ahead = () if view.phase in FINAL_PHASES or view.phase == "rolling_back" else HAPPY_PATH
    steps = [
        tag("li", f"{'▸' if phase == view.phase else '✓'} {phase_title(phase)} {took}".rstrip())
        for phase, took in reached.items()
    ]
    steps += [tag("li", f"· {phase_title(phase)}") for phase in ahead if phase not in reached]
    style = "list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;padding:0;margin:4px 0"
    return tag("ol", *steps, style=style, aria_label="phases of the move")


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
        f"expected pause {format_duration(bill.pause_s)}, "
        f"{format_bytes(bill.transfer_bytes)} to transfer",
        f"advice: {plan.verdict}",
        *(f"· {reason}" for reason in bill.reasons),
        f"plan {view.migration_id}, digest {plan.digest[:12]}",
    ]


def _next(view: MigrationView, prompt: str) -> list[str]:
    if view.phase == "proposed":
        return [f"{prompt} approve {view.migration_id}", f"{prompt} reject {view.migration_id}"]
    return [] if view.phase in FINAL_PHASES else [f"{prompt} watch {view.run_name}"]
