"""Cost, checks and targets as tables."""

from __future__ import annotations

from collections.abc import Sequence

from cloudshift_lab.core.money import format_usd
from cloudshift_lab.core.views import Check, CostLine, CostView, Target
from cloudshift_lab.lab.render.figures import clock, rate
from cloudshift_lab.lab.render.markup import (
    SIMULATED,
    box,
    dim,
    simulated_badge,
    table,
    tag,
    text_table,
)
from cloudshift_lab.lab.render.saves import saves_lines

COST_HEAD = ("spent on", "where", "amount", "basis")
CHECK_HEAD = ("", "check", "found", "what to do")
TARGET_HEAD = ("target", "price", "what it is")


def cost_text(view: CostView) -> str:
    """What a run has cost, line by line, as text."""
    lines = text_table(COST_HEAD, _cost_rows(view), frozenset({2}))
    return "\n".join([*lines, *saves_lines(view.saves), _cost_note(view)])


def cost_html(view: CostView) -> str:
    """What a run has cost, line by line, as HTML."""
    return box(
        f"cost of {view.run_id}",
        tag("div", tag("strong", f"Cost of {view.run_id}"),
            simulated_badge(simulated=view.simulated)),
        table(COST_HEAD, _cost_rows(view), frozenset({2})),
        *(dim(line) for line in saves_lines(view.saves)), dim(_cost_note(view)),
    )  # fmt: skip


def _cost_rows(view: CostView) -> list[tuple[str, ...]]:
    rows = [
        (line.label, line.target, format_usd(line.amount_micro_usd),
         _basis(line))
        for line in view.lines
    ]  # fmt: skip
    return [*rows, ("total", "", format_usd(view.total_micro_usd), "sum of the lines")]


def _basis(line: CostLine) -> str:
    unmarked = line.simulated and SIMULATED not in line.basis
    return f"{line.basis}, {SIMULATED}" if unmarked else line.basis


def _cost_note(view: CostView) -> str:
    return f"now {rate(view.price_micro_usd_per_h)}; as of {clock(view.as_of)}"


def checks_text(checks: Sequence[Check]) -> str:
    """The doctor's findings as text."""
    return "\n".join([*text_table(CHECK_HEAD, _check_rows(checks), frozenset()), _verdict(checks)])


def checks_html(checks: Sequence[Check]) -> str:
    """The doctor's findings as HTML."""
    return box(
        "doctor", table(CHECK_HEAD, _check_rows(checks), frozenset()), dim(_verdict(checks))
    )  # fmt: skip


def _check_rows(checks: Sequence[Check]) -> list[tuple[str, ...]]:
    return [
        ("✓ ok" if check.ok else "✗ mend", check.name, check.detail,
         "" if check.ok else check.advice)
        for check in checks
    ]  # fmt: skip


def _verdict(checks: Sequence[Check]) -> str:
    broken = sum(not check.ok for check in checks)
    return "all is well" if not broken else f"{broken} of {len(checks)} checks need you"


def targets_text(targets: Sequence[Target]) -> str:
    """Where runs can live, as text."""
    return "\n".join(
        [*text_table(TARGET_HEAD, _target_rows(targets), frozenset({1})), *_notes(targets)]
    )


def targets_html(targets: Sequence[Target]) -> str:
    """Where runs can live, as HTML."""
    rows = table(TARGET_HEAD, _target_rows(targets), frozenset({1}))
    return box("clouds", rows, *(dim(line) for line in _notes(targets)))


def _target_rows(targets: Sequence[Target]) -> list[tuple[str, ...]]:
    return [
        (target.target, rate(target.price_micro_usd_per_h), _title(target)) for target in targets
    ]


def _notes(targets: Sequence[Target]) -> list[str]:
    return list(dict.fromkeys(target.note for target in targets if target.note))


def _title(target: Target) -> str:
    told = SIMULATED in target.title.lower()
    return f"{target.title} [{SIMULATED}]" if target.simulated and not told else target.title
