"""The README's figures, all of them written from recorded results alone.

python -m cloudshift_lab.sim.bench.claims [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.sim.bench.proofs import PLANTED, read_result
from cloudshift_lab.sim.bench.rows import Goal, Result, Row
from cloudshift_lab.sim.bench.table import number

RESULTS = Path("tests/bench/results")
README = Path("README.md")
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
_GOALS = {"at most": "≤", "at least": "≥", "exactly": "exactly"}


COMMANDS = {
    "demo": "make demo && cp build/demo/summary.json {path}",
    "sim": "python -m cloudshift_lab sim --seeds 10000 --json {path}",
    "chaos": "python -m cloudshift_lab chaos migration --kills 100 --json {path}",
    "market": "python -m cloudshift_lab market replay --benchmark DIR --no-jobs --json {path}",
}
"""What writes a result that neither a benchmark nor a planted bug does."""


class Claim(NamedTuple):
    """A sentence and the rows that it rests on, the first of which has the goal.

    ``bench`` is the name of the file; ``others`` are shown beside it, each with a word of what it
    is.
    """

    bench: str
    text: str
    row: str
    others: tuple[tuple[str, str], ...] = ()


CLAIMS = (
    Claim("demo", "A moved run equals one that was never moved: largest difference of a loss",
          "largest difference of a loss", (
        ("lost steps", "lost steps"),
        ("final weights and optimizer states that differ", "final states that differ"),
    )),
    Claim("demo", "The small move of the demo carries, of the state's bytes",
          "bytes moved / state",
          (("moved", "bytes moved"), ("state", "bytes of the state"))),
    Claim("demo", "... and computes nothing for", "no step anywhere",
          (("until the first new step was done", "until the first new step was done"),)),
    Claim("sim", "Killed, cut off and lied to by its stores, a move never makes two owners or "
          "loses a committed step: violations in random simulated histories", "violations", (
        ("histories", "histories"),
        ("injected faults", "injected faults"),
        ("crashes", "crashes"),
    )),
    Claim("sim-ref-before-chunks", "... and the check can fail: a commit written before its "
          "chunks is found by, of all seeds", "seeds that found it", (("of", "histories"),)),
    Claim("sim-no-fencing", "... a log without fencing", "seeds that found it",
          (("of", "histories"),)),
    Claim("sim-cleanup-after-ambiguous", "... undoing a move whose commit got no answer",
          "seeds that found it", (("of", "histories"),)),
    Claim("chaos", "Real processes killed, real links cut while real runs move: violations",
          "violations", (
        ("processes killed and links cut", "processes killed and links cut"),
        ("other faults", "other faults"),
        ("owners at once", "owners at once"),
        ("losses compared", "losses compared"),
    )),
    Claim("migration", "How long a run of 500 MB stands still in a move over 200 Mbit/s: of the "
          "better rival's (stop, save, copy, restart)", "500 MB: pause / the better rival's",
          (("ours", "500 MB: closing replay: no step anywhere"),)),
    Claim("migration", "... and until its first new step is done: of the better rival's",
          "500 MB: time until the first new step / the better rival's",
          (("ours", "500 MB: closing replay: until the first new step was done"),)),
    Claim("migration", "The pause does not grow with the state: of 2 GB's to 100 MB's",
          "pause of the largest / of the smallest state"),
    Claim("migration", "A move carries, of 500 MB of state", "500 MB: bytes on the wire / state"),
    Claim("migration", "A step beside the copying, all on one machine: of an undisturbed one's",
          "500 MB: a step during the pre-copy / the control's"),
    Claim("migration", "A move of 500 MB loses no step", "500 MB: lost steps"),
    Claim("migration", "... and every loss is as if it had never moved, bit by bit",
          "500 MB: losses that differ from the control's"),
    Claim("checkpoint", "How long training stands still for a save", "ours: stall p50", (
        ("dcp.async_save", "dcp.async_save: stall p50"),
        ("torch.save + fsync", "torch.save + fsync: stall p50"),
    )),
    Claim("checkpoint", "... at the slowest (goal: one copy of the state)", "ours: stall p99"),
    Claim("checkpoint", "Training time lost per save, all processors busy: of `dcp.async_save`'s",
          "ours: lost training time / dcp.async_save's", (
        ("ours", "ours: lost training time per save"),
        ("dcp.async_save", "dcp.async_save: lost training time per save"),
        ("scatter without any save", "no save: scatter of as many steps"),
    )),
    Claim("checkpoint", "... of `torch.save`'s",
          "ours: lost training time / torch.save + fsync's", (
        ("torch.save", "torch.save + fsync: lost training time per save"),
    )),
    Claim("checkpoint", "... with a processor to spare, as beside a GPU: of `dcp.async_save`'s",
          "a processor to spare, ours: lost training time / dcp.async_save's", (
        ("ours", "a processor to spare, ours: lost training time per save"),
        ("dcp.async_save", "a processor to spare, dcp.async_save: lost training time per save"),
    )),
    Claim("checkpoint", "... of `torch.save`'s, with a processor to spare",
          "a processor to spare, ours: lost training time / torch.save + fsync's", (
        ("torch.save",
         "a processor to spare, torch.save + fsync: lost training time per save"),
    )),
    Claim("checkpoint", "The saver hashes and codes a state, per processor second",
          "ours: raw state per processor second of the saver"),
    Claim("checkpoint", "Saving takes one copy of the state in memory, and little besides",
          "ours: extra host memory"),
    Claim("checkpoint", "After a restore every loss is the same, bit by bit",
          "ours: losses that differ after a restore"),
    Claim("restore", "Restoring from a store 30 ms away (simulated) is faster than DCP's "
          "FsspecReader, 5 MiB read ahead", "ours is faster than DCP with 5 MiB ahead", (
        ("ours", "ours: restore"),
        ("DCP", "DCP FsspecReader, 5 MiB ahead: restore"),
    )),
    Claim("restore", "... and with 50 MiB read ahead, as s3fs does now",
          "ours is faster than DCP with 50 MiB ahead"),
    Claim("restore", "It reads hardly more than is stored", "ours: bytes read / stored", (
        ("DCP", "DCP FsspecReader, 5 MiB ahead: bytes read / stored"),
    )),
    Claim("corruption", "No damage goes unnoticed", "ours: silent corruptions", (
        ("DCP, of 200", "DCP: silent corruptions"),
    )),
    Claim("codec", "fp32 AdamW takes fewer bytes than it has, and is at the entropy floor",
          "fp32 AdamW: above the entropy floor", (("saved", "fp32 AdamW: saved"),)),
    Claim("codec", "... bf16 with an fp32 master", "bf16 + fp32 master: above the entropy floor",
          (("saved", "bf16 + fp32 master: saved"),)),
    Claim("codec", "... pure bf16", "pure bf16: above the entropy floor",
          (("saved", "pure bf16: saved"),)),
    Claim("codec", "... a fine-tune with a large, sparse embedding",
          "fine-tune, sparse embedding: above the entropy floor",
          (("saved", "fine-tune, sparse embedding: saved"),)),
    Claim("codec", "A cut-over one step after a save moves far fewer bytes",
          "fp32 AdamW, one step later: saved"),
    Claim("codec", "A later save of a LoRA run stores far fewer bytes", "LoRA, later save: saved"),
    Claim("market", "Replayed on recorded spot markets, a job costs, of what perfect foresight "
          "would have paid (geometric mean over kinds of jobs)",
          "cost / omniscient, geometric mean of the cells", (
        ("staying put", "rival: stay, geometric mean of the cells"),
        ("Uniform Progress", "rival: uniform progress, geometric mean of the cells"),
    )),
    Claim("market", "... jobs of half the length", "the same, jobs of half the length (H100)"),
    Claim("market", "... sixteen GPUs at once with a checkpoint of 2 TB",
          "16-GPU gang, 2 TB checkpoint"),
    Claim("market", "... the same with $0.09/GB between regions, copied only after a preemption",
          "across clouds, gang 16: 2 TB, $0.09/GB, exposed"),
    Claim("market", "No deadline is missed, with lost work and slow transfers too",
          "deadlines missed, lost work and exposed transfers included"),
    Claim("market", "In its worst window it costs, of the better of staying and Uniform Progress",
          "worst window against the better of {stay, Uniform Progress}"),
    Claim("advice", "A decision over 200 offers takes",
          "a decision over 200 offers, median",
          (("p95", "a decision over 200 offers, p95"),)),
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Rewrite the table between the README's markers. ``--check`` only says whether it would."""
    parser = argparse.ArgumentParser(prog="claims", description=main.__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    before = options.readme.read_text(encoding="utf-8")
    after = rewritten(before, claims_table(read_results(options.results)))
    if options.check:
        return 0 if before == after else 1
    options.readme.write_text(after, encoding="utf-8")
    return 0


def read_results(folder: Path) -> dict[str, Result]:
    """The recorded results that claims rest on; those that are not recorded are left out.

    Raises:
        UsageError: One is of a tiny run.
        Corrupt: One is no such file.
    """
    found = {}
    for bench in dict.fromkeys(claim.bench for claim in CLAIMS):
        path = folder / f"{bench}.json"
        if not path.exists():
            continue
        found[bench] = read_result(path, bench)
        if found[bench].size != "full":
            raise UsageError(f"{path} is of a {found[bench].size} run; record a full one")
    return found


def claims_table(results: Mapping[str, Result]) -> str:
    """The table, and below it where and when it was measured, and what was not.

    Raises:
        Corrupt: A result lacks a row that a claim rests on.
    """
    lines = ["| claim | measured | goal | |", "|---|---|---|---|"]
    lines += [_line(claim, results.get(claim.bench)) for claim in CLAIMS]
    return "\n".join([*lines, "", *_origins(results), *_missing(results), ""])


def command(bench: str) -> str:
    """What writes a result file, from the top of a checkout."""
    path = RESULTS / f"{bench}.json"
    if bench.startswith(PLANTED):
        bug = bench.removeprefix(PLANTED)
        return f"python -m cloudshift_lab sim --seeds 100 --plant {bug} --json {path}"
    usual = "python -m cloudshift_lab bench {bench} --json {path}"
    return COMMANDS.get(bench, usual).format(bench=bench, path=path)


def rewritten(readme: str, table: str) -> str:
    """A README with the table between its markers.

    Raises:
        UsageError: It has no markers, or has them twice.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise UsageError(f"the README needs one line '{BEGIN}' and one line '{END}' after it")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def _line(claim: Claim, result: Result | None) -> str:
    if result is None:
        return f"| {claim.text} | not measured yet |  |  |"
    rows = {row.name: row for row in result.rows}
    first = _row(rows, claim.row, result)
    beside = [f"{what} {_figure(_row(rows, name, result))}" for what, name in claim.others]
    figure = f"{_figure(first)} ({', '.join(beside)})" if beside else _figure(first)
    missed = "**goal missed**" if first.passed is False else ""
    return f"| {claim.text} | {figure} | {_goal(first)} | {missed} |"


def _row(rows: Mapping[str, Row], name: str, result: Result) -> Row:
    if name not in rows:
        raise Corrupt(
            f"the result of {result.bench} at {result.commit} has no row '{name}'; measure it again"
        )
    return rows[name]


def _figure(row: Row) -> str:
    if row.unit == "bytes":
        return format_bytes(int(row.value))
    unit = "times" if row.unit == "x" else row.unit
    return f"{number(row.value)} {unit}".rstrip()


def _goal(row: Row) -> str:
    goal: Goal | None = row.goal
    if goal is None:
        return ""
    limit = msgspec.structs.replace(row, value=goal.limit)
    return f"{_GOALS[goal.order]} {_figure(limit)}"


def _origins(results: Mapping[str, Result]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for result in results.values():
        here = result.machine
        versions = ", ".join(
            f"{k} {result.versions[k]}" for k in ("torch",) if k in result.versions
        )
        parts = (
            f"at commit `{result.commit}` on {here.num_cpus} CPU cores ({here.cpu})",
            versions,
            result.date.split(" ")[0],
        )
        where = ", ".join(part for part in parts if part)
        groups.setdefault(where, []).append(f"`{result.command}`")
    return [
        f"Measured {where}, by {', '.join(commands)} (every sample is in `{RESULTS}`)."
        for where, commands in groups.items()
    ]


def _missing(results: Mapping[str, Result]) -> list[str]:
    """How to measure what is not measured yet."""
    missing = [b for b in dict.fromkeys(claim.bench for claim in CLAIMS) if b not in results]
    commands = ", ".join(f"`{command(bench)}`" for bench in missing)
    return [f"Not measured yet: {commands}."] if missing else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
