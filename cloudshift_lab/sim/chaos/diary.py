"""What the diaries of killed ranks say: where they went on, what was lost, how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

Phase = Literal["forward", "backward", "optimizer", "step"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer", "step")


class Line(msgspec.Struct, frozen=True):
    """One line: ``start`` of a process, ``step`` done, ``kill`` of itself, ``end`` of training.

    ``at`` wall-clock seconds, ``imports`` from when to when a process imported.
    """

    kind: Literal["start", "step", "kill", "end"]
    at: float
    step: int = 0
    loss: str = ""
    phase: str = ""
    digest: str = ""
    imports: tuple[float, float] = (0.0, 0.0)


Diary = list[Line]
"""What one rank wrote, in all its processes one after the other."""


class Order(msgspec.Struct, frozen=True):
    """One rank to kill, in one phase of one step."""

    step: int
    phase: Phase
    rank: int


class Wound(msgspec.Struct, frozen=True, kw_only=True):
    """One kill and what came of it.

    ``lost_steps``: done by every survivor, and done again. ``to_step_s``: from the kill to the end
    of the next optimizer step on all ranks, ``imports_s`` of it spent in imports by the slowest.
    ``is_equal``: every loss of every rank from there to the next kill is the control's.
    """

    seed: int
    order: Order
    resumed_at: int | None = None
    lost_steps: int | None = None
    is_equal: bool = False
    to_step_s: float | None = None
    imports_s: float | None = None


@dataclass(frozen=True)
class _Next:
    """A rank's first process after a kill."""

    start: Line
    steps: list[Line]


def parse(text: str) -> Diary:
    """A diary as its rank wrote it."""
    return [msgspec.json.decode(line, type=Line) for line in text.splitlines()]


def losses(diary: Diary) -> dict[int, str]:
    """Every step's loss to the last bit; of a repeated step the last one."""
    return {line.step: line.loss for line in diary if line.kind == "step"}


def digests(diaries: list[Diary]) -> list[str]:
    """Each rank's final state."""
    return [line.digest for diary in diaries for line in diary if line.kind == "end"]


def judge(seed: int, order: Order, diaries: list[Diary], control: list[Diary]) -> Wound:
    """What came of one kill.

    Args:
        seed: Of the run.
        order: The kill.
        diaries: Every rank's.
        control: Every rank's of a run that nobody disturbed.
    """
    killed = [
        line for line in diaries[order.rank]
        if line.kind == "kill" and (line.step, line.phase) == (order.step, order.phase)
    ]  # fmt: skip
    following = [_next(diary, killed[0].at) for diary in diaries] if killed else []
    if not killed or not all(one is not None and one.steps for one in following):
        return Wound(seed=seed, order=order)
    at = killed[0].at
    after = [one for one in following if one is not None]
    survivors = [d for rank, d in enumerate(diaries) if rank != order.rank]
    done = min(_newest_before(diary, one.start.at) for diary, one in zip(
        survivors, [one for rank, one in enumerate(after) if rank != order.rank], strict=True
    ))  # fmt: skip
    resumed_at = max(one.start.step for one in after)
    spent = [_overlap(one.start.imports, at, one.steps[0].at) for one in after]
    return Wound(
        seed=seed,
        order=order,
        resumed_at=resumed_at,
        lost_steps=max(0, done - resumed_at),
        is_equal=all(
            losses(theirs).get(line.step) == line.loss
            for one, theirs in zip(after, control, strict=True)
            for line in one.steps
        ),
        to_step_s=max(one.steps[0].at for one in after) - at,
        imports_s=max(spent),
    )


def _next(diary: Diary, at: float) -> _Next | None:
    starts = [n for n, line in enumerate(diary) if line.kind == "start" and line.at > at]
    if not starts:
        return None
    stop = starts[1] if len(starts) > 1 else len(diary)
    return _Next(diary[starts[0]], [ln for ln in diary[starts[0] : stop] if ln.kind == "step"])


def _newest_before(diary: Diary, at: float) -> int:
    return max((line.step for line in diary if line.kind == "step" and line.at < at), default=0)


def _overlap(imports: tuple[float, float], start: float, stop: float) -> float:
    return max(0.0, min(imports[1], stop) - max(imports[0], start))
