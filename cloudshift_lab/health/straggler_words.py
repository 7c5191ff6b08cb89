"""What is said about slow ranks, nodes and runs."""

from __future__ import annotations

from dataclasses import dataclass

from cloudshift_lab.health.finding import Evidence, Finding, Subject


@dataclass(frozen=True, kw_only=True)
class Slow:
    """What was seen.

    Args:
        step: When it was found.
        ranks: Who is slow.
        excess: By how much they are slower than their own past, as a share.
        steps: For how many steps, as far as can be told.
        errors: Standard errors of the mean that showed it.
        limit: What the excess or the errors are held against.
        blamed: The section that grew most; None: not looked for.
    """

    step: int
    ranks: tuple[int, ...]
    excess: float
    steps: int
    errors: float
    limit: float
    blamed: Evidence | None = None

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Rows common to all of them."""
        rows = (
            Evidence("excess over its own past", round(self.excess, 4), "share", 0.0, self.step),
            Evidence("steps it has lasted", self.steps),
            Evidence("standard errors of the mean", round(self.errors, 2), "", self.limit),
        )
        return rows if self.blamed is None else (*rows, self.blamed)

    @property
    def where(self) -> str:
        """The section to blame, in brackets."""
        if self.blamed is None or not isinstance(self.blamed.value, float):
            return ""
        return f" ({self.blamed.what} by {self.blamed.value:.3g} s)"


def degrading(slow: Slow) -> Finding:
    """A rank whose newest steps are slower than chance explains: to be watched."""
    return Finding(
        rule_id="straggler.degrading", subject=Subject("rank", str(slow.ranks[0])),
        severity="watch", evidence=slow.evidence, action="watch", confidence=0.95,
        deterministic=False, at=slow.step, ranks=slow.ranks,
        words=f"Rank {slow.ranks[0]} is {slow.excess:.0%} slower than it was, for about "
        f"{slow.steps} steps{slow.where}; watch it.",
    )  # fmt: skip


def straggler(slow: Slow) -> Finding:
    """A rank that has been slower by the limit for long enough."""
    return Finding(
        rule_id="straggler.rank", subject=Subject("rank", str(slow.ranks[0])),
        severity="warning", evidence=slow.evidence, action="drain the node", confidence=0.95,
        deterministic=False, at=slow.step, ranks=slow.ranks,
        words=f"Rank {slow.ranks[0]} has been {slow.excess:.0%} slower than it was for "
        f"{slow.steps} steps and slows the whole run{slow.where}; look at its machine, or move "
        "the run off it.",
    )  # fmt: skip


def slow_node(slow: Slow, node: int) -> Finding:
    """Most ranks of one node, and not of the others."""
    return Finding(
        rule_id="straggler.node", subject=Subject("node", str(node)), severity="warning",
        evidence=slow.evidence, action="drain the node", confidence=0.95, deterministic=False,
        at=slow.step, ranks=slow.ranks,
        words=f"Node {node} (ranks {slow.ranks[0]} to {slow.ranks[-1]}) is {slow.excess:.0%} "
        "slower than it was; look at its cooling, power and network, or move the run off it.",
    )  # fmt: skip


def slow_run(slow: Slow) -> Finding:
    """All ranks alike: no straggler, and nothing that moving one rank would mend."""
    return Finding(
        rule_id="slowdown.run", subject=Subject("run", "run"), severity="watch",
        evidence=slow.evidence, action="watch", confidence=0.9, deterministic=False, at=slow.step,
        words=f"All ranks have become {slow.excess:.0%} slower by step {slow.step}, none of them "
        "more than the others; look at the data, the batch, and what they share (storage, power, "
        "network).",
    )  # fmt: skip
