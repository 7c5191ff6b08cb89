"""What may be done about findings without asking: only what is proven, and only so often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloudshift_lab.health.finding import SEVERITY_SCORE, Action, Finding

Verdict = Literal["act", "would act", "ask", "hold", "note"]
HOUR_S = 3600.0
AUTOMATIC: frozenset[Action] = frozenset(
    {
        "restart the run", "reset the GPU", "drain and reset the GPU", "reboot the node",
        "drain the node", "replace the node",
    }
)  # fmt: skip
"""Actions that can be taken back, or lose at most a step."""


@dataclass(frozen=True)
class ActionPolicy:
    """What a user allows.

    Args:
        dry_run: Nothing is done; what would be done is said. The default.
        max_per_h: Automatic actions within any hour, so that a wrong rule cannot empty a cluster.
        trusted: Statistical rules the user lets act all the same, by their ``rule_id``.
        again_s: The same finding is not acted on twice within this time.
    """

    dry_run: bool = True
    max_per_h: int = 2
    trusted: frozenset[str] = frozenset()
    again_s: float = HOUR_S


class Taken(msgspec.Struct, frozen=True):
    """An automatic action of before: the finding's key, and seconds."""

    key: str
    at: float


class Ruling(msgspec.Struct, frozen=True):
    """What is done about one finding, and why, for people."""

    finding: Finding
    verdict: Verdict
    because: str


def rule(
    findings: Sequence[Finding], taken: Sequence[Taken], now: float,
    policy: ActionPolicy | None = None,
) -> tuple[Ruling, ...]:  # fmt: skip
    """Decide about all findings that stand, severest first.

    Args:
        findings: Those that stand now.
        taken: Automatic actions of before (also dry ones, so that a dry run shows what would be).
        now: Seconds.
        policy: What is allowed.

    Returns:
        One ruling per finding. ``act`` and ``would act`` count towards the hour's budget.
    """
    policy = policy or ActionPolicy()
    left = policy.max_per_h - sum(now - HOUR_S < each.at <= now for each in taken)
    done = {each.key for each in taken if now - each.at < policy.again_s}
    rulings = []
    for finding in sorted(findings, key=_urgency):
        ruling = _judge(finding, policy, left, done)
        rulings.append(ruling)
        if ruling.verdict in ("act", "would act"):
            left -= 1
            done.add(finding.key)
    return tuple(rulings)


def _urgency(finding: Finding) -> tuple[float, bool, float, str]:
    return (
        -SEVERITY_SCORE[finding.severity], not finding.deterministic, -finding.confidence,
        finding.key,
    )  # fmt: skip


def _judge(finding: Finding, policy: ActionPolicy, left: int, done: set[str]) -> Ruling:
    if finding.action in ("none", "watch") or finding.severity in ("info", "watch"):
        return Ruling(finding, "note", "nothing has to be done now")
    asks = _why_ask(finding, policy, left)
    if asks is None and finding.key in done:
        return Ruling(finding, "hold", "it was acted on already; wait for what that does")
    if asks is not None:
        return Ruling(finding, "ask", asks)
    why = "it is proven" if finding.deterministic else "the user trusts this rule"
    if policy.dry_run:
        return Ruling(finding, "would act", f"{why}; this is a dry run, so nothing is done")
    return Ruling(finding, "act", why)


def _why_ask(finding: Finding, policy: ActionPolicy, left: int) -> str | None:
    """Why a human has to agree; None: nobody has to."""
    if finding.action not in AUTOMATIC:
        return f"'{finding.action}' needs a human"
    if not finding.deterministic and finding.rule_id not in policy.trusted:
        return "a statistic says so, no proof; approve it if you agree"
    if left <= 0:
        return f"{policy.max_per_h} automatic actions this hour are enough; approve it"
    return None
