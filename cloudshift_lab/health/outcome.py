"""What the end of a run, its agent's warnings and a machine's notice say, as findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cloudshift_lab.health.finding import Action, Evidence, Finding, Severity, Subject

_RUN = Subject("run", "run")
_LONGEST = 300


def find_end(
    state: Literal["failed", "lost"], error: str, at: float, *, rank: int | None = None,
    last_line: str = "",
) -> Finding:  # fmt: skip
    """A run that ended otherwise than it should.

    Args:
        state: ``failed``: its script raised; ``lost``: agent or machine are gone.
        error: Why, as the run says it, with what to do.
        at: When, wall-clock seconds.
        rank: The rank that failed first, where one did.
        last_line: Of its traceback.
    """
    evidence = [Evidence("it said", error[:_LONGEST], at=at)]
    if last_line:
        evidence.append(Evidence("last line of the traceback", last_line[:_LONGEST], at=at))
    if state == "lost":
        return _found("run.lost", _RUN, evidence, "restart the run", error, severity="critical")
    if rank is not None and not last_line:  # it raised nothing: something ended it
        words = f"Rank {rank} is gone and the run with it: {error}; resume it."
        return _found(
            "rank.death", Subject("rank", str(rank)), evidence, "restart the run", words,
            severity="critical", ranks=(rank,),
        )  # fmt: skip
    if rank is None:
        words = f"The run failed: {error}"
        return _found(
            "run.failed", _RUN, evidence, "look at the application", words, severity="critical"
        )
    words = f"Rank {rank} failed and the run with it: {error}; mend the script, then resume it."
    return _found(
        "rank.failed", Subject("rank", str(rank)), evidence, "look at the application", words,
        severity="critical", ranks=(rank,),
    )  # fmt: skip


def find_troubles(trouble: str | None, warnings: Sequence[str], at: float) -> tuple[Finding, ...]:
    """What keeps the conductor from looking after a run, and what its agent warns of.

    Args:
        trouble: In the way of the conductor now; None when nothing is.
        warnings: Of the agent, oldest first.
        at: When they were read, wall-clock seconds.
    """
    found = []
    if trouble:
        evidence = [Evidence("the conductor says", trouble[:_LONGEST], at=at)]
        found.append(
            _found("conductor.trouble", _RUN, evidence, "watch", trouble, severity="warning")
        )
    if warnings:
        evidence = [Evidence("the agent says", text[:_LONGEST], at=at) for text in warnings]
        found.append(
            _found("agent.warning", _RUN, evidence, "watch", warnings[-1], severity="watch")
        )
    return tuple(found)


def find_healing(words: str, at: float) -> Finding:
    """Ranks that failed and are being started again by their agent; ``words`` are the agent's."""
    evidence = [Evidence("the agent says", words[:_LONGEST], at=at)]
    return _found("ranks.healing", _RUN, evidence, "none", words, severity="warning")


def find_budget(percent: int, words: str, at: float) -> Finding:
    """A budget of which ``percent`` or more is spent; ``words`` say how much, and for how long."""
    evidence = [Evidence("of the budget is spent", float(percent), "%", 50.0, at=at)]
    severity: Severity = "watch" if percent < 80 else "warning"
    return _found("run.budget", _RUN, evidence, "none", words, severity=severity)


def find_notice(left_s: float, at: float, words: str) -> Finding:
    """A machine that will be taken away; ``left_s`` seconds from ``at``."""
    evidence = [Evidence("seconds until the machine goes", round(left_s, 1), "s", at=at)]
    return _found("machine.notice", _RUN, evidence, "watch", words, severity="warning")


def _found(
    rule_id: str, subject: Subject, evidence: Sequence[Evidence], action: Action, words: str, *,
    severity: Severity, ranks: tuple[int, ...] = (),
) -> Finding:  # fmt: skip
    return Finding(
        rule_id=rule_id, subject=subject, severity=severity, evidence=tuple(evidence),
        action=action, confidence=1.0, deterministic=True, words=words,
        at=evidence[0].at or 0.0, ranks=ranks,
    )  # fmt: skip
