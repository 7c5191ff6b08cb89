"""``health evaluate``: every rule against its goal, on a folder of labelled data."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.fetch import usable_cpus
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.health.hazard import Coefficients
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.bench.rows import Result, Row
from cloudshift_lab.sim.health import node_faults, precursors, stragglers, xids
from cloudshift_lab.sim.health.precursors import GpuOutcome
from cloudshift_lab.sim.health.stragglers import RunOutcome

Say = Callable[[str], None]
STRAGGLERS, PRECURSORS, XID = "straggler_sim", "precursor_sim", "xid"
FAULTS = Path("infinitehbd", "fault_episodes.csv")


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The document behind ``--json``.

    Args:
        result: Rows with goals, and what they were measured with.
        left_out: Parts of the folder that were not there.
        runs: What was said about each simulated run.
        gpus: What was said about each simulated GPU.
        coefficients: What the train part of this folder's trace gives; None without one.
    """

    result: Result
    left_out: tuple[str, ...]
    runs: tuple[RunOutcome, ...] = ()
    gpus: tuple[GpuOutcome, ...] = ()
    coefficients: Coefficients | None = None


def evaluate(folder: Path, say: Say, *, num_clean: int | None = None) -> Evaluation:
    """Judge everything that a folder has data for.

    Args:
        folder: With ``straggler_sim/``, ``precursor_sim/``, ``xid/`` and ``infinitehbd/``, or some
            of them.
        say: Told what is going on.
        num_clean: Nodes without a fault to add to the trace; None: in proportion.

    Raises:
        UsageError: It has none of them.
    """
    machine, began = surroundings.machine(), REAL_WORLD.monotonic()
    parts = {STRAGGLERS: folder / STRAGGLERS, PRECURSORS: folder / PRECURSORS,
             XID: folder / XID, str(FAULTS): folder / FAULTS}  # fmt: skip
    there = [name for name, path in parts.items() if path.exists()]
    if not there:
        raise UsageError(
            f"{folder} has no {', no '.join(parts)}; give a folder that has at least one of them"
        )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cpus(), mp_context=context) as pool:
        found = _judge(parts, there, pool, say, num_clean)
    rows, runs, gpus, coefficients = found
    result = Result(
        bench="health evaluate", size="full",
        command="python -m cloudshift_lab health evaluate --data DIR", date=surroundings.date(),
        commit=surroundings.commit(), machine=machine, versions=surroundings.versions(),
        seconds=round(REAL_WORLD.monotonic() - began, 1), rows=tuple(rows),
    )  # fmt: skip
    return Evaluation(
        result=result, left_out=tuple(name for name in parts if name not in there), runs=runs,
        gpus=gpus, coefficients=coefficients,
    )  # fmt: skip


def _judge(
    parts: dict[str, Path], there: list[str], pool: Executor, say: Say, num_clean: int | None
) -> tuple[list[Row], tuple[RunOutcome, ...], tuple[GpuOutcome, ...], Coefficients | None]:
    rows: list[Row] = []
    runs: tuple[RunOutcome, ...] = ()
    gpus: tuple[GpuOutcome, ...] = ()
    coefficients = None
    if STRAGGLERS in there:
        say("stragglers ...")
        found, runs = stragglers.evaluate(parts[STRAGGLERS], pool)
        rows += found
    if PRECURSORS in there:
        say("precursors ...")
        signs, gpus = precursors.evaluate(parts[PRECURSORS], pool)
        rows += signs
    if XID in there:
        rows += xids.evaluate(parts[XID])
    if str(FAULTS) in there:
        say("node faults ...")
        risks, coefficients = node_faults.evaluate(
            parts[str(FAULTS)], num_clean, trained_on=f"this trace, {surroundings.date()[:10]}"
        )
        rows += risks
    return rows, runs, gpus, coefficients
