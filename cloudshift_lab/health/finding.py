"""What a detector says: whom it concerns, what was seen, what to do, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

SubjectKind = Literal["run", "rank", "node", "gpu", "link", "disk"]
Severity = Literal["info", "watch", "warning", "critical"]
Action = Literal[
    "none", "watch", "look at the application", "restart the run", "roll back", "reset the GPU",
    "drain and reset the GPU", "reboot the node", "drain the node", "replace the node",
    "contact support",
]  # fmt: skip
SEVERITY_SCORE: dict[Severity, float] = {
    "info": 0.0, "watch": 0.3, "warning": 0.6, "critical": 1.0,
}  # fmt: skip
"""How much a finding takes from a node's score of 1."""


class Subject(msgspec.Struct, frozen=True, order=True):
    """Whom a finding is about: ``rank 3``, ``gpu node-7/PCI:0000:3b:00``."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Evidence(msgspec.Struct, frozen=True):
    """One row of what was seen: a value with its unit, and the limit it is held against.

    Args:
        what: What was looked at, for people.
        value: What was seen; text where it is a line of a log or a hash.
        unit: Of ``value`` and ``limit``; empty for a count or text.
        limit: What it may be at most (or is compared with); None where nothing is.
        at: When: a step, or seconds of the window's clock; None where it has no time.
    """

    what: str
    value: float | str
    unit: str = ""
    limit: float | str | None = None
    at: float | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, or seems to be, with everything a decision needs.

    Args:
        rule_id: Which rule found it: ``straggler.rank``.
        subject: Whom it concerns.
        severity: How bad it is if it is true.
        evidence: What was seen.
        action: What it asks for; whether that may be done without asking is the policy's to say.
        confidence: How likely it is true, 0 to 1; from the rule's precision where measured.
        deterministic: The hardware, the kernel or a proof says so; False: a statistic does.
        words: What happened and what to do, one line.
        at: When it was found: a step, or seconds of the window's clock.
        ranks: Ranks concerned, where the subject is more than one or the run.
    """

    rule_id: str
    subject: Subject
    severity: Severity
    evidence: tuple[Evidence, ...]
    action: Action
    confidence: float
    deterministic: bool
    words: str
    at: float
    ranks: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Equal for findings of the same thing: what a request or a state is deduplicated by."""
        return f"{self.rule_id}/{self.subject.kind}/{self.subject.name}"


def worst(findings: Sequence[Finding]) -> Finding | None:
    """The one to show first: severest, then proven before guessed, then surest; None of none."""
    if not findings:
        return None
    return max(
        findings, key=lambda it: (SEVERITY_SCORE[it.severity], it.deterministic, it.confidence)
    )
