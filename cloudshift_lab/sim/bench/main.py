"""``python -m cloudshift_lab bench``: measure, print a table, write a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bed import ending_in_order
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.bench.rows import Result, Row, Say, Size, untimed
from cloudshift_lab.sim.bench.table import table

BENCHES = (
    "checkpoint",
    "restore",
    "codec",
    "corruption",
    "migration",
    "telemetry",
    "steady",
    "advice",
)


def main(argv: list[str]) -> int:
    """Run one benchmark. Returns 0 when every goal was met, 1 when one was missed."""
    options = _parse(argv)
    try:
        with ending_in_order():
            result = measure(options.bench, options.size, _say)
        if options.json is not None:
            write(result, options.json)
    except CloudshiftError as error:
        print(f"bench failed: {error.message}", file=sys.stderr)
        return 1
    if options.json != "-":
        print(table(result))
    return 0 if result.passed else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cloudshift bench", description=main.__doc__)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--json", help="file to write; - prints it instead of the table")
    parser.add_argument(
        "--size", choices=("tiny", "full"), default="full",
        help="tiny only shows that it runs: its timings mean nothing and decide nothing",
    )  # fmt: skip
    return parser.parse_args(argv)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def measure(bench: str, size: Size, say: Say) -> Result:
    """Run a benchmark and put its surroundings beside its rows.

    Raises:
        UsageError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise UsageError("benchmarks need torch; run: pip install 'cloudshift-lab[torch]'")
    machine, began = surroundings.machine(), REAL_WORLD.monotonic()
    run: Callable[[Size, Say], tuple[Row, ...]] = import_module(
        f"cloudshift_lab.sim.bench.{bench}"
    ).run
    rows = run(size, say)
    if size == "tiny":
        rows = untimed(rows)
    return Result(
        bench=bench, size=size, command=f"python -m cloudshift_lab bench {bench} --size {size}",
        date=surroundings.date(), commit=surroundings.commit(), machine=machine,
        versions=surroundings.versions(),
        seconds=round(REAL_WORLD.monotonic() - began, 1), rows=rows,
    )  # fmt: skip


def write(result: Result, path: str) -> None:
    """Write a result, one file per benchmark; ``-`` prints it."""
    data = msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
    if path == "-":
        sys.stdout.write(data.decode())
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
