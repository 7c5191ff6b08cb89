"""``python -m cloudshift_lab market replay``: the policy on recorded markets, beside hindsight."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.bench.rows import Result, Row, at_most, exactly, row, untimed
from cloudshift_lab.sim.bench.table import table
from cloudshift_lab.sim.market.score import (
    Case,
    by_cell,
    cell_ratio,
    geometric_mean,
    misses,
    with_interval,
    worst_harm,
)
from cloudshift_lab.sim.market.traces import read_benchmark
from cloudshift_lab.sim.market.trials import replay_all, trials

_LARGE_GANG = "gcp_h100_gang16 1.2x 2000 GB"


class Replay(msgspec.Struct, frozen=True):
    """The file: the table, and every job behind it."""

    result: Result
    cases: dict[str, list[Case]]


def main(argv: list[str]) -> int:
    """Replay a benchmark. Returns 0 when every goal was met, 1 otherwise."""
    options = _parse(argv)
    began = REAL_WORLD.monotonic()
    folder = Path(options.benchmark)
    try:
        wanted = trials(read_benchmark(folder), is_quick=options.quick)
        cases = replay_all(folder, wanted, _say)
    except CloudshiftError as error:
        print(f"market replay failed: {error.message}", file=sys.stderr)
        return 1
    rows = rows_of(cases)
    result = Result(
        bench="market", size="tiny" if options.quick else "full",
        command="python -m cloudshift_lab market replay --benchmark DIR",
        date=surroundings.date(), commit=surroundings.commit(), machine=surroundings.machine(),
        versions=surroundings.versions(), seconds=round(REAL_WORLD.monotonic() - began, 1),
        rows=untimed(rows) if options.quick else rows,
    )  # fmt: skip
    if options.json is not None:
        kept = {} if options.no_jobs else cases
        data = msgspec.json.format(msgspec.json.encode(Replay(result, kept)), indent=1)
        Path(options.json).write_bytes(data + b"\n")
    print(table(result))
    return 0 if result.passed else 1


def rows_of(cases: dict[str, list[Case]]) -> tuple[Row, ...]:
    """The figures that judge the policy, then each cell."""
    cells, half = cases.get("cells", []), cases.get("half", [])
    every = [case for table_of in cases.values() for case in table_of]
    found = [
        *_ratio("cost / omniscient, geometric mean of the cells", cells, 1.08),
        *_ratio("the same, jobs of half the length (H100)", half, 1.12),
        row(
            "deadlines missed, lost work and exposed transfers included", misses(every), "jobs",
            goal=exactly(0), note=f"of {len(every)} jobs",
        ),
        *_ratio(
            "16-GPU gang, 2 TB checkpoint", [case for case in cells if case.cell == _LARGE_GANG],
            1.25,
        ),
    ]  # fmt: skip
    for kind in sorted(cases):
        if kind.startswith("across"):
            found += _ratio(f"{kind}: 2 TB, $0.09/GB, exposed", cases[kind], 1.5)
    found.append(
        row(
            "worst window against the better of {stay, Uniform Progress}", worst_harm(cells), "x",
            goal=at_most(1.05), full_only=True,
        )
    )  # fmt: skip
    for name in ("stay", "uniform progress"):
        found.append(row(f"rival: {name}, geometric mean of the cells", _rival(cells, name), "x"))
    for table_of in cases.values():
        for cell, inside in by_cell(table_of).items():
            found.append(row(f"cell: {cell}", cell_ratio(inside), "x", note=f"{len(inside)} jobs"))
    return tuple(found)


def _ratio(name: str, cases: list[Case], limit: float) -> list[Row]:
    """One row, or none where the benchmark has no such job."""
    if not cases:
        return []
    found = with_interval(cases)
    note = f"{len(cases)} jobs, {len({case.block for case in cases})} blocks"
    if not math.isnan(found.low):
        note = f"95 % interval {found.low:.3f} to {found.high:.3f}, {note}"
    return [row(name, found.value, "x", goal=at_most(limit), full_only=True, note=note)]


def _rival(cases: list[Case], name: str) -> float:
    return geometric_mean(
        [
            sum(case.rivals_usd[name] for case in inside)
            / sum(case.omniscient_usd for case in inside)
            for inside in by_cell(cases).values()
        ]
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cloudshift market replay", description=main.__doc__)
    parser.add_argument(
        "--benchmark", required=True,
        help="folder with benchmark.json and the traces that it names",
    )  # fmt: skip
    parser.add_argument("--json", help="file for the table and every job behind it")
    parser.add_argument("--no-jobs", action="store_true", help="leave the jobs out of the file")
    parser.add_argument("--quick", action="store_true", help="one job a cell: shows that it runs")
    return parser.parse_args(argv)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
