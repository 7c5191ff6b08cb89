"""Live migration against stop, save, copy and restart: the same link, the same training.

Two simulated clouds are joined by a link of 50 ms and 200 Mbit/s; conductor, agents and torchrun
ranks are real. Everything runs on this one machine, so source, target, conductor, link and both
object stores share its processors; the notes say what that does to a figure.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.home import open_home
from cloudshift_lab.core.plan import ClosingKind, MigrationView, Phase
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bed import Bed
from cloudshift_lab.sim.bench.gpt import Shape
from cloudshift_lab.sim.bench.migration_rivals import NEW_STEPS, SCRIPT, TITLES, Restarted, Rival
from cloudshift_lab.sim.bench.rows import Row, Say, Size, at_most, exactly, median, row
from cloudshift_lab.sim.bench.trace import (
    Pause,
    Traced,
    differing_losses,
    pause_after,
    read,
    repeated_or_missing,
    step_s,
)
from cloudshift_lab.sim.clouds import AWS_SIM, GCP_SIM, SimClouds
from cloudshift_lab.sim.link import Link

RTT_S, BYTES_PER_S = 0.05, 200e6 / 8
SOURCE, TARGET = f"{AWS_SIM}:us-east-1", f"{GCP_SIM}:us-central1"
CLOSINGS: tuple[ClosingKind, ...] = ("replay", "copy")
WHILE_TRAINING: dict[Phase, str] = {
    "provisioning": "while the target starts",
    "precopying": "during the pre-copy",
    "rehearsing": "while the target rehearses",
}
"""Phases in which the source trains on, as the rows name them."""


class Case(NamedTuple):
    """One state that is moved. ``steps``: how many are done before; ``samples`` of everything."""

    title: str
    shape: Shape
    ranks: int
    steps: int
    samples: int
    has_rivals: bool = True


CASES: dict[Size, tuple[Case, ...]] = {
    "tiny": (Case("tiny", Shape(2, 64, 2, 256, 32, 1), 1, 10, 1),),
    "full": (
        Case("100 MB", Shape(5, 384, 6, 512, 64, 1), 1, 60, 2),
        Case("500 MB", Shape(6, 768, 6, 512, 64, 1), 1, 30, 3),
        Case("2 GB", Shape(13, 1024, 8, 512, 64, 1), 1, 15, 1, has_rivals=False),
        Case("100 MB, no core to spare", Shape(5, 384, 6, 512, 64, 1), 2, 60, 1, has_rivals=False),
    ),
}
BEST = "500 MB"
LARGE = ("500 MB", "2 GB")
STEPS_OF_WARM_UP = 2


class Moved(NamedTuple):
    """One of our moves; ``during``: times of the source's steps in phases before the drain."""

    view: MigrationView
    pause: Pause
    wire_bytes: int
    during: dict[Phase, tuple[float, ...]]
    lost: int
    trace: tuple[Traced, ...]


class Measured(NamedTuple):
    """Everything that was measured of one case."""

    case: Case
    ours: dict[ClosingKind, list[Moved]]
    rivals: dict[str, list[Restarted]]
    control: tuple[Traced, ...]


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Measure every case in clouds of its own."""
    measured = [_measure(case, say) for case in CASES[size]]
    rows = [each for one in measured for each in _rows(one)]
    return (*rows, *_flat(measured))


def _measure(case: Case, say: Say) -> Measured:
    found = Measured(case, {}, {}, ())
    with tempfile.TemporaryDirectory(prefix="moving-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _clouds(folder / "home") as (home, link), Bed(home) as bed:
            rival = Rival(folder, home, AWS_SIM, _env(case), ranks=case.ranks)
            for number in range(case.samples):
                for closing in CLOSINGS:
                    say(f"{case.title}: move {number + 1} of {case.samples}, closing {closing}")
                    moved = _move(case, closing, bed, link, folder / f"{closing}-{number}")
                    found.ours.setdefault(closing, []).append(moved)
                for how, title in TITLES.items() if case.has_rivals else ():
                    say(f"{case.title}: {title}, copy, restart, {number + 1} of {case.samples}")
                    restarted = rival.restart(how, steps=case.steps)
                    found.rivals.setdefault(title, []).append(restarted)
            say(f"{case.title}: the uninterrupted control")
            traces = [m.trace for moves in found.ours.values() for m in moves]
            last = max(each.step for trace in traces for each in trace)
            return found._replace(control=rival.train(last))


@contextmanager
def _clouds(place: Path) -> Iterator[tuple[Path, Link]]:
    """Two joined clouds in a state directory of their own."""
    home = open_home(place)
    clouds = SimClouds(home)
    clouds.up()
    try:
        with clouds.joined(rtt_s=RTT_S, bytes_per_s=BYTES_PER_S) as link:
            yield home, link
    finally:
        clouds.down()
        shutil.rmtree(home / "sim", ignore_errors=True)


def _env(case: Case) -> dict[str, str]:
    return {"MOVING_SHAPE": json.dumps(case.shape)}


def _move(case: Case, closing: ClosingKind, bed: Bed, link: Link, folder: Path) -> Moved:
    """Start a run, move it once, let it train a few steps there, stop it."""
    folder.mkdir()
    trace = folder / "trace"
    spec = RunSpec(
        name=REAL_WORLD.new_id("moving"), script=str(SCRIPT), target=SOURCE,
        ranks_per_node=case.ranks, keep="2", save_policy=str(case.steps),
        env={**_env(case), "MOVING_TRACE": str(trace), "MOVING_STEPS": str(1 << 30)},
    )  # fmt: skip
    run_id = bed.train(spec).run_id
    bed.reach(run_id, case.steps)
    bed.wait(lambda: _saved(bed, run_id), "the first save")
    before = link.count().num_bytes
    view = bed.approve(_propose(bed, run_id, closing), "bench")
    view = bed.end_of(view.migration_id, approver="bench")
    if view.phase != "source_retired" or view.sealed_step is None:
        raise CloudshiftError(f"{view.migration_id} ended as {view.phase}: {view.error}")
    wire_bytes = link.count().num_bytes - before
    bed.reach(run_id, view.sealed_step + NEW_STEPS)
    bed.stop(run_id)
    found = read(trace)
    last = max(each.step for each in found)
    lost = repeated_or_missing(found, first=1, last=last, sealed=view.sealed_step)
    return Moved(
        view, pause_after(found, view.sealed_step), wire_bytes,
        {phase: _steps_in(found, view, phase) for phase in WHILE_TRAINING}, lost, found,
    )  # fmt: skip


def _propose(bed: Bed, run_id: str, closing: ClosingKind) -> MigrationView:
    return bed.client.migrate(run_id, TARGET, closing=closing)


def _saved(bed: Bed, run_id: str) -> RunView | None:
    view = bed.client.run(run_id)
    return view if view.checkpoint_step is not None else None


def _steps_in(trace: Sequence[Traced], view: MigrationView, phase: Phase) -> tuple[float, ...]:
    """Times of the source's steps within a phase, seconds; none where it was too short."""
    began = _entered(view, phase)
    ended = min((t.at for t in view.timeline if began is not None and t.at > began), default=None)
    if began is None or ended is None:
        return ()
    source = min(trace, key=lambda each: each.began).pid
    own = [each for each in trace if each.pid == source]
    return step_s(own, since=began, until=ended)


def _entered(view: MigrationView, phase: Phase) -> float | None:
    return next((each.at for each in view.timeline if each.phase == phase), None)


# -- rows ---------------------------------------------------------------------------------------


def _rows(one: Measured) -> list[Row]:
    rows = [each for closing in CLOSINGS for each in _pauses(one, closing)]
    for title, found in one.rivals.items():
        rows += _rival_rows(one.case, title, found)
    if one.rivals:
        rows += _against(one)
    return [*rows, *_costs(one), *_exactness(one)]


def _pauses(one: Measured, closing: ClosingKind) -> list[Row]:
    moves, name = one.ours[closing], f"{one.case.title}: closing {closing}"
    still, new = ([m.pause.still_s for m in moves], [m.pause.new_s for m in moves])
    return [
        row(f"{name}: no step anywhere", median(still), "s", samples=still,
            note="longest time in which no process was in an optimizer step; repeated steps count "
            "as steps"),
        row(f"{name}: until the first new step was done", median(new), "s", samples=new,
            note="from the end of the source's last step; that step itself included"),
    ]  # fmt: skip


def _rival_rows(case: Case, title: str, found: Sequence[Restarted]) -> list[Row]:
    name = f"{case.title}: {title}, copy, restart"
    still, new = ([r.pause.still_s for r in found], [r.pause.new_s for r in found])
    parts = (median([getattr(r, part) for r in found]) for part in ("save_s", "copy_s", "start_s"))
    save, copy, start = (f"{each:.1f} s" for each in parts)
    return [
        row(f"{name}: no step anywhere", median(still), "s", samples=still,
            note=f"save and exit {save}, copy over the link {copy}, start to first step {start}"),
        row(f"{name}: until the first new step was done", median(new), "s", samples=new),
    ]  # fmt: skip


def _against(one: Measured) -> list[Row]:
    """Our pauses against the best rival's, each by the same measure; the first one has the goal."""
    title, moves = one.case.title, one.ours["replay"]
    goal = at_most(0.1) if title == BEST else None
    still, new = median([m.pause.still_s for m in moves]), median([m.pause.new_s for m in moves])
    rivals = one.rivals.values()
    best_still = min(median([r.pause.still_s for r in found]) for found in rivals)
    best_new = min(median([r.pause.new_s for r in found]) for found in rivals)
    return [
        row(f"{title}: pause / the better rival's", still / best_still, "x",
            samples=(still, best_still), goal=goal,
            note="no step anywhere, closing replay; repeated steps count as steps"),
        row(f"{title}: time until the first new step / the better rival's", new / best_new, "x",
            samples=(new, best_new), note="closing replay; the steps it repeats are waited for"),
    ]  # fmt: skip


def _costs(one: Measured) -> list[Row]:
    moves = [m for closing in CLOSINGS for m in one.ours[closing]]
    wire = {
        closing: [m.wire_bytes / m.view.bytes_state for m in one.ours[closing]]
        for closing in CLOSINGS
    }
    title, note = one.case.title, "of the link, both directions, all rounds"
    return [
        row(f"{title}: bytes on the wire / state", max(wire["replay"]), "x",
            samples=wire["replay"], goal=at_most(0.85) if title in LARGE else None,
            full_only=True, note=f"{note}; closing replay, the default"),
        row(f"{title}: closing copy: bytes on the wire / state", max(wire["copy"]), "x",
            samples=wire["copy"], full_only=True,
            note=f"{note}; the rehearsed step and the sealed one are both carried"),
        *_slow_downs(one, moves),
    ]  # fmt: skip


def _slow_downs(one: Measured, moves: Sequence[Moved]) -> list[Row]:
    """Steps while the source trains on beside a move, against those of the control."""
    quiet = step_s(one.control, since=0.0, until=math.inf)[STEPS_OF_WARM_UP:]
    title, rows = one.case.title, []
    for phase, words in WHILE_TRAINING.items():
        slow = [median(m.during[phase]) / median(quiet) for m in moves if len(m.during[phase]) > 1]
        if not slow or len(quiet) < 2:
            continue
        is_held = phase == "precopying" and title in LARGE and one.case.ranks == 1
        rows.append(
            row(f"{title}: a step {words} / the control's", median(slow), "x", samples=slow,
                goal=at_most(1.05) if is_held else None, full_only=True,
                note="medians; the control is the same script without us, saves or a move; source, "
                "target, link and stores share this machine")
        )  # fmt: skip
    return rows


def _exactness(one: Measured) -> list[Row]:
    moves = [m for closing in CLOSINGS for m in one.ours[closing]]
    lost = [m.lost for m in moves]
    differing = [differing_losses(m.trace, one.control) for m in moves]
    num = sum(len(m.trace) for m in moves)
    title = one.case.title
    return [
        row(f"{title}: lost steps", sum(lost), "steps", samples=lost, goal=exactly(0)),
        row(f"{title}: losses that differ from the control's", sum(differing), "steps",
            samples=differing, goal=exactly(0), note=f"{num} steps compared bit by bit"),
    ]  # fmt: skip


def _flat(measured: Sequence[Measured]) -> list[Row]:
    """How far the pause depends on the size of the state."""
    sized = [one for one in measured if one.case.ranks == 1]
    if len(sized) < 2:
        return []
    pauses = [median([m.pause.still_s for m in one.ours["replay"]]) for one in sized]
    return [
        row("pause of the largest / of the smallest state", max(pauses) / min(pauses), "x",
            samples=pauses, goal=at_most(2.0),
            note="no step anywhere, closing replay; repeated steps count as steps: "
            + ", ".join(m.case.title for m in sized)),
    ]  # fmt: skip
