"""Results of what is no benchmark: the demo, the simulation, the chaos run, as rows with goals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.sim.bench.rows import Machine, Result, Row, Size, at_least, exactly, row
from cloudshift_lab.sim.chaos.report import Report as ChaosReport
from cloudshift_lab.sim.dst import Report as SimReport
from cloudshift_lab.sim.market.main import Replay

PLANTED = "sim-"
"""What files of simulations with a planted bug begin with; the bug's name follows."""
_STEPS, _HISTORIES, _PLANTED_HISTORIES, _KILLS = 200, 1000, 100, 100


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What of the demo's ``summary.json`` a claim rests on."""

    command: str
    date: str
    commit: str
    machine: Machine
    seconds: float
    steps: int
    lost_steps: int
    loss_max_abs_diff: float
    final_weights_equal: bool
    bytes_state: int
    bytes_moved: int
    pause_s: float
    still_s: float


def read_result(path: Path, bench: str) -> Result:
    """The recorded result of a benchmark, or of another proof, by the name of its file.

    Raises:
        Corrupt: It is no such file.
    """
    data, what = path.read_bytes(), str(path)
    if bench in _PROOFS:
        return _PROOFS[bench](data, what)
    if bench.startswith(PLANTED):
        return _planted(data, what, bench.removeprefix(PLANTED))
    return from_json(data, Result, what=what)


def _demo(data: bytes, what: str) -> Result:
    found = from_json(data, Summary, what=what)
    rows = (
        row("largest difference of a loss", found.loss_max_abs_diff, "", goal=exactly(0)),
        row("lost steps", found.lost_steps, "", goal=exactly(0)),
        row("final states that differ", int(not found.final_weights_equal), "", goal=exactly(0)),
        row("bytes moved / state", found.bytes_moved / found.bytes_state, "x"),
        row("bytes moved", found.bytes_moved, "bytes"),
        row("bytes of the state", found.bytes_state, "bytes"),
        row("no step anywhere", found.still_s, "s"),
        row("until the first new step was done", found.pause_s, "s"),
    )
    return _result("demo", found, "full" if found.steps >= _STEPS else "tiny", rows)


def _sim(data: bytes, what: str) -> Result:
    found = _report(data, what, None)
    rows = (
        row("violations", found.num_violations, "", goal=exactly(0)),
        row("histories", found.histories, ""),
        row("injected faults", found.injected_faults, ""),
        row("crashes", found.crashes, ""),
    )
    return _result("sim", found, "full" if found.histories >= _HISTORIES else "tiny", rows)


def _planted(data: bytes, what: str, bug: str) -> Result:
    found = _report(data, what, bug)
    size: Size = "full" if found.histories >= _PLANTED_HISTORIES else "tiny"
    return _result(PLANTED + bug, found, size, (
        row("seeds that found it", found.seeds_with_violations, "", goal=at_least(1)),
        row("histories", found.histories, ""),
    ))  # fmt: skip


def _report(data: bytes, what: str, bug: str | None) -> SimReport:
    found = from_json(data, SimReport, what=what)
    if found.plant != bug:
        was, wanted = (f"with --plant {b}" if b else "without --plant" for b in (found.plant, bug))
        raise Corrupt(f"{what} was recorded {was}, not {wanted}; record it again")
    return found


def _chaos(data: bytes, what: str) -> Result:
    found = from_json(data, ChaosReport, what=what)
    rows = (
        row("violations", len(found.violations), "", goal=exactly(0)),
        row("processes killed and links cut", found.kills, "", goal=at_least(found.wanted)),
        row("processes killed", found.killed, ""),
        row("link cuts", found.cut, ""),
        row("other faults", found.others, ""),
        row("steps lost in moves whose owner lived", found.lost_steps_planned, "", goal=exactly(0)),
        row("owners at once", found.split_brains, "", goal=exactly(0)),
        row("losses compared", found.compared, ""),
    )
    return _result("chaos", found, "full" if found.wanted >= _KILLS else "tiny", rows)


def _market(data: bytes, what: str) -> Result:
    return from_json(data, Replay, what=what).result


_PROOFS: dict[str, Callable[[bytes, str], Result]] = {
    "demo": _demo, "sim": _sim, "chaos": _chaos, "market": _market,
}  # fmt: skip


def _result(
    bench: str, found: Summary | SimReport | ChaosReport, size: Size, rows: tuple[Row, ...]
) -> Result:
    return Result(
        bench=bench, size=size, command=found.command, date=found.date, commit=found.commit,
        machine=found.machine, versions={}, seconds=found.seconds, rows=rows,
    )  # fmt: skip
