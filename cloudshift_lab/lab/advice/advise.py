"""``cloudshift market advise``: should this run move, where to, and what would change that."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.home import home
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.feeds.cache import known_prices
from cloudshift_lab.feeds.feed import Query
from cloudshift_lab.lab.advice.job import EXAMPLE, question_of, read_job
from cloudshift_lab.lab.advice.live import question_of_run
from cloudshift_lab.lab.render.advice import advice_sheet
from cloudshift_lab.lab.render.sheet import sheet_text
from cloudshift_lab.market.advice import Advice, Question, advise


def main(argv: list[str]) -> int:
    """Print advice. Returns 0 whatever it is, 1 when none could be given."""
    options = _parse(argv)
    try:
        question = _question(options)
        advice = advise(question)
        if options.json is not None:
            write(advice, options.json)
    except (CloudshiftError, OSError) as error:
        print(f"market advise failed: {getattr(error, 'message', error)}", file=sys.stderr)
        return 1
    if options.json != "-":
        move = f"cloudshift migrate {options.run or 'RUN'} --to {_target(advice)}"
        print(sheet_text(advice_sheet(advice, following=(move,))))
    return 0


def write(advice: Advice, path: str) -> None:
    """As JSON into a file; ``-`` prints it."""
    data = msgspec.json.format(msgspec.json.encode(advice), indent=1) + b"\n"
    if path == "-":
        sys.stdout.write(data.decode())
        return
    Path(path).write_bytes(data)


def _question(options: argparse.Namespace) -> Question:
    if (options.run is None) == (options.job is None):
        raise UsageError("name a run, or a job's file with --job; not both, not neither")
    if options.run is not None:
        return question_of_run(options.run, options.hours, options.deadline, REAL_WORLD)
    job = read_job(Path(options.job))
    known = known_prices(home(), Query(accelerator=job.accelerator), REAL_WORLD)
    return question_of(job, known.quotes, REAL_WORLD.now())


def _target(advice: Advice) -> str:
    if advice.target is None:
        return "CLOUD:REGION"
    return f"{advice.target.cloud}:{advice.target.region}"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cloudshift market advise", description=main.__doc__,
        epilog=f"A job's file (TOML, or the same as JSON):\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", nargs="?", help="run id or name")
    parser.add_argument("--job", help="a job's file instead of a run")
    parser.add_argument("--hours", type=float, help="training left, where the run cannot know")
    parser.add_argument("--deadline", type=float, help="hours from now by which it must be done")
    parser.add_argument("--json", help="file for everything; - prints it instead of the table")
    return parser.parse_args(argv)
