"""Many histories, on every processor: ``python -m cloudshift_lab sim``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.fetch import usable_cpus
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.bench.rows import Machine
from cloudshift_lab.sim.log_history import LogHistory, UnfencedLog, run_log_history
from cloudshift_lab.sim.move_history import run_move_history
from cloudshift_lab.sim.plants import PLANTS, plant
from cloudshift_lab.sim.scene import MoveHistory
from cloudshift_lab.sim.watch import Violation
from cloudshift_lab.storage.log import RunLog

DEFAULT_SEEDS = 100
_PROGRESS_EVERY_S = 5.0
_SHOWN_VIOLATIONS = 100
_LOG_EVERY = 4
_CHUNK = 8


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What many histories add up to; the document behind ``--json``.

    ``histories`` counts whole moves of runs, ``log_histories`` races on a bare run log.
    ``by_event`` says what the moves were made of: replays, new bills, tries, machines taken away.
    ``trace_digest`` is one hash over everything that happened, in order; the number of processes
    (``jobs``) does not change it.
    """

    command: str
    date: str
    commit: str
    machine: Machine
    first_seed: int
    histories: int
    log_histories: int
    plant: str | None
    injected_faults: int
    faults_by_kind: dict[str, int]
    crashes: int
    steps: int
    virtual_s: float
    violations: list[Violation]
    num_violations: int
    seeds_with_violations: int
    by_invariant: dict[str, int]
    by_final_phase: dict[str, int]
    by_event: dict[str, int]
    trace_digest: str
    seconds: float
    histories_per_s: float
    python_hash_seed: str
    jobs: int


@dataclass(frozen=True)
class _Lived:
    """One seed's history of a move, and of the bare log where it has one."""

    move: MoveHistory
    log: LogHistory | None


@dataclass
class _Sum:
    """Adds histories up as they come."""

    digests: list[str] = field(default_factory=list)
    log_histories: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    violations: list[Violation] = field(default_factory=list)

    def add(self, lived: _Lived) -> None:
        history = lived.move
        self.digests.append(history.digest)
        self.faults.update(history.injected_faults)
        self.phases.update(history.phases)
        self.events.update(history.events)
        self.crashes += history.crashes
        self.steps += history.steps
        self.virtual_s += history.virtual_s
        self.violations += history.violations
        if lived.log is not None:
            self._add_log(lived.log)

    def _add_log(self, history: LogHistory) -> None:
        self.log_histories += 1
        self.digests.append(history.digest)
        self.faults["log"] += history.injected_faults
        self.crashes += history.crashes
        self.violations += history.violations


def run_histories(
    seeds: Sequence[int],
    *,
    bug: str | None = None,
    quiet: bool = False,
    trace: Path | None = None,
    jobs: int = 1,
) -> Report:
    """Live one history per seed, and one of the bare log for every fourth.

    Args:
        seeds: One history each.
        bug: Name of a planted bug; None for the production code.
        quiet: Say nothing on stderr.
        trace: Where to write everything the last history did, a line per event.
        jobs: Processes that share the seeds.

    Raises:
        UsageError: No such planted bug.
    """
    if bug is not None:
        plant(bug)
    total, began, spoke_at = _Sum(), time.perf_counter(), time.perf_counter()
    for index, lived in enumerate(_live_all(seeds, bug, jobs)):
        total.add(lived)
        if trace is not None:
            trace.write_text("\n".join(lived.move.trace) + "\n")
        if not quiet and time.perf_counter() - spoke_at > _PROGRESS_EVERY_S:
            spoke_at = time.perf_counter()
            print(
                f"{index + 1}/{len(seeds)} histories, {len(total.violations)} violations",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return _report(total, seeds, bug, seconds=time.perf_counter() - began, jobs=jobs)


def _live_all(seeds: Sequence[int], bug: str | None, jobs: int) -> Iterator[_Lived]:
    """Every seed's history, in the order of the seeds whoever lived it."""
    if jobs <= 1 or len(seeds) <= _CHUNK:
        with _on_one_cpu(os.getpid()):
            yield from (_live(bug, seed) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    turns = context.Value("i", 0)
    with ProcessPoolExecutor(jobs, context, _settle_down, (turns,)) as pool:
        yield from pool.map(partial(_live_untraced, bug), seeds, chunksize=_CHUNK)


@contextmanager
def _on_one_cpu(turn: int) -> Iterator[None]:
    """Run the actors on one processor: they take turns, and passing it on is what costs time."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    _settle_on(turn)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _settle_on(turn: int) -> None:
    """Stay on one of the processors, where the system lets a process choose."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[turn % len(allowed)]})


def _settle_down(turns: Synchronized[int]) -> None:
    """Give each worker its own processor."""
    with turns.get_lock():
        turns.value += 1
        turn = turns.value
    _settle_on(turn)


def _live_untraced(bug: str | None, seed: int) -> _Lived:
    """A history without its lines, which nobody reads of many."""
    lived = _live(bug, seed)
    lived.move.trace.clear()
    return lived


def _live(bug: str | None, seed: int) -> _Lived:
    move = run_move_history(seed, None if bug is None else plant(bug))
    log_type = UnfencedLog if bug == "no-fencing" else RunLog
    has_log = seed % _LOG_EVERY == 0 and bug in (None, "no-fencing")
    return _Lived(move, run_log_history(seed, log_type) if has_log else None)


def _report(
    total: _Sum, seeds: Sequence[int], bug: str | None, *, seconds: float, jobs: int
) -> Report:
    from blake3 import blake3

    return Report(
        command=_command(seeds, bug),
        date=surroundings.date(),
        commit=surroundings.commit(),
        machine=surroundings.machine(),
        first_seed=seeds[0],
        histories=len(seeds),
        log_histories=total.log_histories,
        plant=bug,
        injected_faults=sum(total.faults.values()),
        faults_by_kind=dict(sorted(total.faults.items())),
        crashes=total.crashes,
        steps=total.steps,
        virtual_s=round(total.virtual_s, 3),
        violations=total.violations[:_SHOWN_VIOLATIONS],
        num_violations=len(total.violations),
        seeds_with_violations=len({violation.seed for violation in total.violations}),
        by_invariant=dict(sorted(Counter(v.invariant for v in total.violations).items())),
        by_final_phase=dict(sorted(total.phases.items())),
        by_event=dict(sorted(total.events.items())),
        trace_digest=blake3("".join(total.digests).encode()).hexdigest(),
        seconds=round(seconds, 3),
        histories_per_s=round(len(seeds) / seconds, 2),
        python_hash_seed=os.environ.get("PYTHONHASHSEED", "random"),
        jobs=jobs,
    )


def _command(seeds: Sequence[int], bug: str | None) -> str:
    """What lives the same histories again."""
    first = f" --first {seeds[0]}" if seeds[0] else ""
    planted = f" --plant {bug}" if bug is not None else ""
    return f"python -m cloudshift_lab sim --seeds {len(seeds)}{first}{planted}"


def main(argv: list[str]) -> int:
    """The command line of the simulation.

    Returns:
        0 without violations, 1 with some (also when they were planted), 2 for a wrong call.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    seeds = _seeds(arguments)
    try:
        report = run_histories(
            seeds, bug=arguments.plant, trace=arguments.trace, jobs=arguments.jobs
        )
    except UsageError as error:
        print(error.message, file=sys.stderr)
        return 2
    _write(report, arguments.json)
    return 1 if report.num_violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudshift sim",
        description="Live many random histories of runs and moves under faults and crashes.",
    )
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, metavar="N",
                        help=f"how many histories (default {DEFAULT_SEEDS})")  # fmt: skip
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--seed", type=int, metavar="SEED", help="live this one history only")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), metavar="N",
                        help="processes to share the seeds (default: all processors)")  # fmt: skip
    parser.add_argument("--json", metavar="PATH", help="write the report here; - is stdout")
    parser.add_argument("--plant", metavar="BUG",
                        help=f"plant a bug that must be found: {', '.join(PLANTS)}")  # fmt: skip
    parser.add_argument("--trace", type=Path, metavar="PATH",
                        help="with --seed: write every event of the history here")  # fmt: skip
    return parser


def _seeds(arguments: argparse.Namespace) -> range:
    if arguments.seed is not None:
        return range(arguments.seed, arguments.seed + 1)
    return range(arguments.first, arguments.first + max(1, arguments.seeds))


def _write(report: Report, json_path: str | None) -> None:
    data = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if json_path == "-":
        sys.stdout.write(data.decode() + "\n")
        return
    if json_path is not None:
        Path(json_path).write_bytes(data + b"\n")
    print(_summary(report))


def _summary(report: Report) -> str:
    lines = [
        f"{report.histories} histories of moves and {report.log_histories} of the bare log, "
        f"{report.injected_faults} faults, {report.crashes} crashes, "
        f"{report.num_violations} violations in {report.seconds:.1f} s"
    ]
    lines += [
        f"  seed {violation.seed}: {violation.invariant}: {violation.detail}"
        for violation in report.violations[:10]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
