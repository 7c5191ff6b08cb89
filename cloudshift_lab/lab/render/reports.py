"""Checks and targets as tables."""

from __future__ import annotations

from collections.abc import Sequence

from cloudshift_lab.core.views import Check, Target
from cloudshift_lab.lab.render.figures import rate
from cloudshift_lab.lab.render.markup import (
    SIMULATED,
    box,
    dim,
    table,
    text_table,
)

CHECK_HEAD = ("", "check", "found", "what to do")
TARGET_HEAD = ("target", "price", "what it is")


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
