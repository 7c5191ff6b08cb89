"""Replicas of the same weights that are no longer the same: silent corruption."""

from __future__ import annotations

from collections import Counter

from cloudshift_lab.health.finding import Evidence, Finding, Subject
from cloudshift_lab.health.windows import ReplicaWindow

_SHOWN = 5


def find_corruption(window: ReplicaWindow) -> tuple[Finding, ...]:
    """Tensors whose replicas differ, and with a majority the ranks that hold the odd ones.

    Of two replicas nobody can say which is right. Of three or more, those that differ from more
    than half of all are wrong; where no hash has such a majority, nobody is named.
    """
    differing = sorted(name for name, hashes in window.hashes.items() if len(set(hashes)) > 1)
    if not differing:
        return ()
    odd: Counter[int] = Counter()
    undecided = []
    for name in differing:
        hashes = window.hashes[name]
        right, votes = Counter(hashes).most_common(1)[0]
        if len(hashes) < 3 or 2 * votes <= len(hashes):
            undecided.append(name)
            continue
        odd.update(rank for rank, seen in zip(window.ranks, hashes, strict=True) if seen != right)
    named = tuple(_named(window, rank, differing) for rank in sorted(odd))
    return named + ((_unnamed(window, undecided),) if undecided else ())


def _named(window: ReplicaWindow, rank: int, differing: list[str]) -> Finding:
    at = window.ranks.index(rank)
    own = [name for name in differing if _is_odd(window.hashes[name], at)]
    return Finding(
        rule_id="corruption.rank", subject=Subject("rank", str(rank)), severity="critical",
        evidence=_rows(window, own), action="replace the node", confidence=1.0,
        deterministic=True, at=window.step, ranks=(rank,),
        words=f"Rank {rank} holds other weights than the {len(window.ranks) - 1} other replicas "
        f"after step {window.step} ({len(own)} tensors, first {own[0]}); replace its node and take "
        "the state of another replica.",
    )  # fmt: skip


def _unnamed(window: ReplicaWindow, names: list[str]) -> Finding:
    ranks = ", ".join(str(rank) for rank in window.ranks[:8])
    return Finding(
        rule_id="corruption.run", subject=Subject("run", "run"), severity="critical",
        evidence=_rows(window, names), action="roll back", confidence=1.0, deterministic=True,
        at=window.step, ranks=window.ranks,
        words=f"The replicas on ranks {ranks} differ after step {window.step} and no majority says "
        "which is right; go back to a checkpoint whose hashes agreed.",
    )  # fmt: skip


def _is_odd(hashes: tuple[str, ...], at: int) -> bool:
    right, votes = Counter(hashes).most_common(1)[0]
    return len(hashes) >= 3 and 2 * votes > len(hashes) and hashes[at] != right


def _rows(window: ReplicaWindow, names: list[str]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(name, " ".join(window.hashes[name])[:200], at=window.step)
        for name in names[:_SHOWN]
    )
