"""``python -m cloudshift_lab health``: judge the rules on data, replay a real fault trace."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.sim.bench.table import table
from cloudshift_lab.sim.health.evaluation import Evaluation, evaluate
from cloudshift_lab.sim.health.replay import Replay, Setup, replay, text_of


def main(argv: list[str]) -> int:
    """Evaluate or replay. Returns 0 when every goal was met, 1 otherwise."""
    options = _parse(argv)
    try:
        document: Evaluation | Replay
        if options.what == "evaluate":
            document = evaluate(Path(options.data), _say, num_clean=options.clean_nodes)
        else:
            setup = Setup(nodes=options.nodes, seeds=options.seeds)
            document = replay(Path(options.trace), setup, num_clean=options.clean_nodes)
    except CloudshiftError as error:
        print(f"health {options.what} failed: {error.message}", file=sys.stderr)
        return 1
    if options.json is not None:
        Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    print(_text(document) if isinstance(document, Evaluation) else text_of(document))
    return 0 if document.result.passed else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cloudshift health", description=main.__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    judging = what.add_parser("evaluate", help="every rule against its goal, on labelled data")
    judging.add_argument(
        "--data", required=True,
        help="folder with straggler_sim/, precursor_sim/, xid/, infinitehbd/, or some of them",
    )  # fmt: skip
    playing = what.add_parser("replay", help="downtime of a job under a real fault trace")
    playing.add_argument("--trace", required=True, help="CSV: node_id,start_day,end_day,...")
    playing.add_argument("--nodes", type=int, help="of the job; 124 if the fleet has them")
    playing.add_argument("--seeds", type=int, default=20, help="random placements to average over")
    for each in (judging, playing):
        each.add_argument("--json", help="file for everything")
        each.add_argument(
            "--clean-nodes", type=int, help="nodes that never failed; in proportion if not given"
        )
    return parser.parse_args(argv)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _text(document: Evaluation) -> str:
    lines = [table(document.result)]
    if document.left_out:
        lines.append(f"not in this folder, and not judged: {', '.join(document.left_out)}")
    return "\n".join(lines)
