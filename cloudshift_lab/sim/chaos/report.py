"""What a chaos run says: every kill, how every move ended, and what must never be there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from cloudshift_lab.core.plan import ClosingKind, Phase
from cloudshift_lab.sim.bench.rows import Machine

Victim = Literal[
    "conductor", "source agent", "target agent", "source rank", "target rank",
    "source rank 0", "target rank 0",
    "source store frozen", "target store frozen", "store on disk killed", "link cut", "link reset",
]  # fmt: skip
VICTIMS: tuple[Victim, ...] = (
    "conductor", "source agent", "target agent", "source rank", "target rank",
    "source rank 0", "target rank 0",
    "source store frozen", "target store frozen", "store on disk killed", "link cut", "link reset",
)  # fmt: skip
KILLED: frozenset[Victim] = frozenset(
    {
        "conductor", "source agent", "target agent", "source rank", "target rank",
        "source rank 0", "target rank 0", "store on disk killed",
    }
)  # fmt: skip
"""These end by SIGKILL."""
COUNTED: frozenset[Victim] = KILLED | {"link cut"}
"""What counts towards the kills that were asked for; freezes and resets only come beside them."""
NEVER_KILLED = (
    "the store server that keeps its objects in memory (it is frozen)",
    "the link's proxies (the link is cut and reset)",
    "torchrun's launchers and the saver processes by themselves (they end with their agent)",
)
PHASES: tuple[Phase, ...] = (
    "provisioning", "precopying", "rehearsing", "draining", "copying", "verifying",
    "committing", "committed", "resumed",
)  # fmt: skip


class Kill(msgspec.Struct, frozen=True):
    """One fault that hit; ``after_s`` seconds into its phase, ``lasts_s`` until it was undone."""

    move: str
    phase: Phase
    victim: Victim
    after_s: float
    lasts_s: float = 0.0


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """One move. ``by_hand``: the run had to be resumed, since its owner's processes were killed.

    ``lost_steps`` were done and had to be done again; allowed only where the owner was killed.
    """

    move: str
    source: str
    target: str
    closing: ClosingKind
    phase: Phase
    kills: tuple[Kill, ...]
    by_hand: bool
    lost_steps: int
    seconds: float
    error: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign. ``passed`` means that ``violations`` is empty and all kills were delivered.

    ``kills`` are ``killed`` (SIGKILL) and ``cut`` (the link); ``others`` are the faults that do not
    count: frozen stores and reset connections.
    """

    seed: int
    command: str
    date: str
    commit: str
    machine: Machine
    seconds: float
    kills: int
    killed: int
    cut: int
    others: int
    wanted: int
    never_killed: tuple[str, ...]
    by_phase: dict[str, int]
    by_victim: dict[str, int]
    outcomes: dict[str, int]
    steps: int
    compared: int
    lost_steps_planned: int
    lost_steps_killed: int
    split_brains: int
    moves: tuple[Ended, ...]
    violations: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.violations and self.kills >= self.wanted


def num_counted(kills: Sequence[Kill]) -> int:
    """How many of these count towards the kills that were asked for."""
    return sum(each.victim in COUNTED for each in kills)


def counted(names: list[str]) -> dict[str, int]:
    """How often each one was there, the most frequent first."""
    return dict(Counter(names).most_common())


def text_of(report: Report) -> str:
    """The report as a few lines."""
    lines = [
        f"{report.killed} processes killed (kill -9) and {report.cut} link cuts, beside them "
        f"{report.others} other faults (stores frozen, connections reset), in "
        f"{len(report.moves)} moves, {report.seconds:.0f} s, seed {report.seed}, "
        f"at {report.commit}",
        "by phase:  " + ", ".join(f"{name} {n}" for name, n in report.by_phase.items()),
        "by victim: " + ", ".join(f"{name} {n}" for name, n in report.by_victim.items()),
        "outcomes:  " + ", ".join(f"{name} {n}" for name, n in report.outcomes.items()),
        f"{report.steps} steps, {report.compared} losses equal to the control's, "
        f"{report.lost_steps_planned} steps lost in moves whose owner lived, "
        f"{report.lost_steps_killed} repeated after an owner was killed, "
        f"{report.split_brains} split brains",
    ]
    lines.append("never killed: " + "; ".join(report.never_killed))
    lines += [f"VIOLATION: {each}" for each in report.violations] or ["no violation"]
    return "\n".join(lines)
