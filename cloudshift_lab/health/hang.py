"""Runs that stand still, and the rank they wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from cloudshift_lab.health.finding import Evidence, Finding, Subject
from cloudshift_lab.health.windows import ProgressWindow

COLLECTIVE_WORDS = (
    "all_reduce", "allreduce", "all_gather", "reduce_scatter", "broadcast", "barrier",
    "all_to_all", "run_backward", "wait",
)  # fmt: skip
"""A stack with one of these at its top waits for other ranks; DDP does within its backward."""
OWN_WORDS = ("threading.py", "multiprocessing", "queue.py", "dataloader", "selectors.py")
"""A stack with one of these at its top waits for a thread or process of its own."""


@dataclass(frozen=True)
class HangLimits:
    """When standing still is a hang: for ``least_s``, or ``steps`` median steps if that is more."""

    least_s: float = 10.0
    steps: float = 5.0


def hang_limit_s(window: ProgressWindow, limits: HangLimits | None = None) -> float:
    """How long no rank may move outside of declared sections, seconds."""
    limits = limits or HangLimits()
    median_s = float(np.median(window.step_s)) if len(window.step_s) else 0.0
    return max(limits.least_s, limits.steps * median_s)


def find_hang(window: ProgressWindow, limits: HangLimits | None = None) -> tuple[Finding, ...]:
    """A hang, if no rank has moved for longer than it may.

    A rank in a declared section has that section's own limit, and as long as one rank may still be
    at work the others wait for it with good reason. The culprits are the ranks that are furthest
    behind: with the lowest step, and in it the fewest collectives. Ranks in a collective only wait.

    Returns:
        One finding about the culprit ranks, or about the run when all stand at the same place; or
        none.
    """
    if not len(window.steps):
        return ()
    limit_s = hang_limit_s(window, limits)
    allowed_s = np.array([window.limits_s.get(name, limit_s) for name in window.sections])
    if not (window.still_s > allowed_s).all():
        return ()
    behind = _furthest_behind(window)
    still_s = float(window.still_s.min())
    others = [rank for rank in range(len(window.steps)) if rank not in behind]
    evidence = (
        Evidence("no rank has moved for", round(still_s, 1), "s", round(limit_s, 1), window.now),
        *(_place(window, rank) for rank in behind[:4]),
        *(_place(window, rank) for rank in others[:2]),
    )
    return (
        _stuck(window, behind, still_s, evidence)
        if others
        else _together(window, still_s, evidence),
    )


def confirm_hang(finding: Finding, stacks: Mapping[int, str]) -> Finding:
    """The same hang, proven or not by what the ranks execute.

    It is proven when a named rank's stack waits for nobody while all the others' wait in a
    collective; then it may be acted on without asking.

    Args:
        finding: From ``find_hang``.
        stacks: Per rank, the stack as text, newest call first (py-spy prints them so); ranks that
            could not be looked at are left out.
    """
    culprits = [rank for rank in finding.ranks if rank in stacks]
    others = [rank for rank in stacks if rank not in finding.ranks]
    seen = tuple(
        Evidence(f"rank {rank} is in", _top(stacks[rank])) for rank in (*culprits[:4], *others[:2])
    )
    proven = (
        bool(culprits) and bool(others)
        and not any(_waits(stacks[rank]) for rank in culprits)
        and all(_waits(stacks[rank]) for rank in others)
    )  # fmt: skip
    return msgspec.structs.replace(
        finding, evidence=finding.evidence + seen, deterministic=proven,
        confidence=0.99 if proven else finding.confidence,
    )  # fmt: skip


def name_hang(finding: Finding, stacks: Mapping[int, str]) -> Finding:
    """A hang of which nobody is behind, with the ranks named that the others wait for.

    All ranks of a synchronous run end the same step before one of them hangs in the next, so its
    place tells nothing; its stack does: it does not wait while the others do, or is somewhere else
    than most. A finding that names ranks is confirmed as :func:`confirm_hang` does.

    Args:
        finding: From ``find_hang``.
        stacks: Per rank, the stack as text, newest call first.
    """
    if finding.ranks:
        return confirm_hang(finding, stacks)
    named = _not_waiting(stacks) or _elsewhere(stacks)
    if not named:
        seen = tuple(
            Evidence(f"rank {rank} is in", _top(stacks[rank])) for rank in list(stacks)[:6]
        )
        return msgspec.structs.replace(finding, evidence=finding.evidence + seen)
    names = f"Rank {named[0]}" if len(named) == 1 else f"Ranks {', '.join(map(str, named[:8]))}"
    place = _top(stacks[named[0]])
    found = msgspec.structs.replace(
        finding, rule_id="hang.rank", subject=Subject("rank", str(named[0])), ranks=named,
        confidence=0.9,
        words=f"{names} hung in {place} and the others wait; look at the stack, then restart the "
        "run without that node.",
    )  # fmt: skip
    return confirm_hang(found, stacks)


def _not_waiting(stacks: Mapping[int, str]) -> tuple[int, ...]:
    """Ranks that wait for nobody while at least one other rank does."""
    ranks = tuple(sorted(rank for rank in stacks if not _waits(stacks[rank])))
    return ranks if len(ranks) < len(stacks) else ()


def _elsewhere(stacks: Mapping[int, str]) -> tuple[int, ...]:
    """Ranks that are not where more than half of all are."""
    places = Counter(_top(stack) for stack in stacks.values())
    if not places:
        return ()
    place, num = places.most_common(1)[0]
    if 2 * num <= len(stacks):
        return ()
    return tuple(sorted(rank for rank, stack in stacks.items() if _top(stack) != place))


def find_dead(
    exit_codes: Mapping[int, int], now: float, nodes: Mapping[int, str] | None = None
) -> tuple[Finding, ...]:
    """Ranks whose process is gone.

    Args:
        exit_codes: Per dead rank, its exit code; negative: killed by that signal.
        now: Seconds.
        nodes: Node of each rank, where known.
    """
    places = nodes or {}
    return tuple(
        _death(rank, code, now, places.get(rank)) for rank, code in sorted(exit_codes.items())
    )


def _death(rank: int, code: int, now: float, node: str | None) -> Finding:
    how = f"killed by signal {-code}" if code < 0 else f"exited with status {code}"
    where = "" if node is None else f" on node {node}"
    return Finding(
        rule_id="rank.death", subject=Subject("rank", str(rank)), severity="critical",
        evidence=(Evidence("exit status", code, at=now),), action="restart the run",
        confidence=1.0, deterministic=True, at=now, ranks=(rank,),
        words=f"Rank {rank}{where} is gone ({how}); the run is restarted from its newest state.",
    )  # fmt: skip


def _furthest_behind(window: ProgressWindow) -> tuple[int, ...]:
    """Ranks at the lowest place; if some of them wait in no collective, only these."""
    step = window.steps.min()
    in_step = window.steps == step
    collective = window.collectives[in_step].min()
    lowest = np.flatnonzero(in_step & (window.collectives == collective))
    ranks = tuple(int(rank) for rank in lowest)
    busy = tuple(rank for rank in ranks if rank not in window.waits_in)
    return busy if busy and len(busy) < len(ranks) else ranks


def _stuck(
    window: ProgressWindow, behind: tuple[int, ...], still_s: float, evidence: tuple[Evidence, ...]
) -> Finding:
    names = f"Rank {behind[0]}" if len(behind) == 1 else f"Ranks {', '.join(map(str, behind[:8]))}"
    place = window.sections[behind[0]]
    where = f" ({place})" if place else ""
    waiting = sorted({window.waits_in[rank] for rank in window.waits_in if rank not in behind})
    others = f"; the others wait in {waiting[0]}" if waiting else "; the others wait"
    return Finding(
        rule_id="hang.rank", subject=Subject("rank", str(behind[0])), severity="critical",
        evidence=evidence, action="restart the run", confidence=0.95 if len(behind) == 1 else 0.8,
        deterministic=False, at=window.now, ranks=behind,
        words=f"{names} hung in step {int(window.steps[behind[0]])}{where}{others} for "
        f"{still_s:.0f} s; look at the stack, then restart the run without that node.",
    )  # fmt: skip


def _together(window: ProgressWindow, still_s: float, evidence: tuple[Evidence, ...]) -> Finding:
    waiting = sorted(set(window.waits_in.values()))
    place = f" in {waiting[0]}" if waiting else ""
    return Finding(
        rule_id="hang.run", subject=Subject("run", "run"), severity="critical", evidence=evidence,
        action="restart the run", confidence=0.9, deterministic=False, at=window.now,
        words=f"All ranks have stood at the same place{place} for {still_s:.0f} s and none is "
        "behind; look at the network between them and at what they share, then restart the run.",
    )  # fmt: skip


def _place(window: ProgressWindow, rank: int) -> Evidence:
    """As far as it is known: not all who look know of collectives and sections."""
    words = [f"step {int(window.steps[rank])}"]
    if window.collectives.any():
        words.append(f"collective {int(window.collectives[rank])}")
    where = window.waits_in.get(rank) or window.sections[rank]
    return Evidence(f"rank {rank} is at", ", ".join([*words, *filter(None, [where])]))


def _waits(stack: str) -> bool:
    top = _top(stack)
    return any(word in top for word in COLLECTIVE_WORDS) and not any(
        word in top for word in OWN_WORDS
    )


def _top(stack: str) -> str:
    lines = [line.strip() for line in stack.splitlines() if line.strip()]
    calls = [line for line in lines if not line.lower().startswith(("process", "thread", "python"))]
    return (calls or lines or [""])[0][:200]
