"""What a node is taken for: healthy, watch, suspect or condemned, with hysteresis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.health.finding import SEVERITY_SCORE, Finding, worst

NodeState = Literal["healthy", "watch", "suspect", "condemned"]
ORDER: tuple[NodeState, ...] = ("healthy", "watch", "suspect", "condemned")


@dataclass(frozen=True)
class NodeLimits:
    """How long a node has to be quiet before it is trusted more, seconds per state it leaves.

    A condemned node is not trusted again by itself: somebody has to say what was done.
    """

    watch_s: float = 1800.0
    suspect_s: float = 6 * 3600.0


class NodeHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it stands.

    Args:
        node: Its name.
        state: What it is taken for.
        since: Seconds at which it came into that state.
        score: 1: nothing known against it; 0: condemned, or as bad.
        quiet_since: Seconds since which nothing has been found that would put it there; None: it
            is found so now.
        because: Words of the finding that put it there.
        keys: Keys of the findings that stand against it.
    """

    node: str
    state: NodeState = "healthy"
    since: float = 0.0
    score: float = 1.0
    quiet_since: float | None = None
    because: str = ""
    keys: tuple[str, ...] = ()


def advance(
    health: NodeHealth, findings: Sequence[Finding], now: float, *, prior: float = 0.0,
    limits: NodeLimits | None = None,
) -> NodeHealth:  # fmt: skip
    """A node after the findings that stand against it now.

    Up at once, down one state at a time and only after quiet: a node that flickers stays where its
    worst finding put it. Only a critical finding with proof condemns; a statistic, however severe,
    makes a node suspect.

    Args:
        health: As it stood.
        findings: All that stand now, also those that stood before.
        now: Seconds.
        prior: Risk from its history (``hazard.week_risk``), which lowers the score, 0 to 1.
        limits: How long quiet has to last.
    """
    limits = limits or NodeLimits()
    bad = worst(findings)
    wanted = _state_for(bad)
    keys = tuple(sorted({each.key for each in findings}))
    score = _score(bad, prior)
    if ORDER.index(wanted) > ORDER.index(health.state):
        return NodeHealth(
            node=health.node, state=wanted, since=now, score=score, keys=keys,
            because=bad.words if bad else "",
        )  # fmt: skip
    if wanted == health.state or health.state == "condemned":
        score = 0.0 if health.state == "condemned" else score
        return msgspec.structs.replace(health, score=score, quiet_since=None, keys=keys)
    return _calmer(health, keys, score, now, limits)


def clear(health: NodeHealth, now: float, *, by: str, done: str) -> NodeHealth:
    """A node that somebody has repaired or tested; it is watched for a while.

    Raises:
        UsageError: Nothing says who did what.
    """
    if not by.strip() or not done.strip():
        raise UsageError("a node is cleared with who did it and what was done; give both")
    return NodeHealth(
        node=health.node, state="watch", since=now, quiet_since=now,
        because=f"cleared by {by}: {done}", score=1 - SEVERITY_SCORE["watch"],
    )  # fmt: skip


def _state_for(finding: Finding | None) -> NodeState:
    if finding is None or finding.severity == "info":
        return "healthy"
    if finding.severity == "watch":
        return "watch"
    is_proven = finding.severity == "critical" and finding.deterministic
    return "condemned" if is_proven else "suspect"


def _score(finding: Finding | None, prior: float) -> float:
    taken = 0.0 if finding is None else SEVERITY_SCORE[finding.severity] * finding.confidence
    return round(max(0.0, (1 - taken) * (1 - prior)), 4)


def _calmer(
    health: NodeHealth, keys: tuple[str, ...], score: float, now: float, limits: NodeLimits
) -> NodeHealth:
    if health.quiet_since is None:
        return msgspec.structs.replace(health, quiet_since=now, keys=keys, score=score)
    lasts_s = limits.suspect_s if health.state == "suspect" else limits.watch_s
    if now - health.quiet_since < lasts_s:
        return msgspec.structs.replace(health, keys=keys, score=score)
    lower = ORDER[ORDER.index(health.state) - 1]
    return NodeHealth(
        node=health.node, state=lower, since=now, score=score, keys=keys, quiet_since=now,
        because=f"quiet for {lasts_s / 60:.0f} min",
    )  # fmt: skip
