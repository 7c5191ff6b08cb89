"""A result as a table that fits a terminal."""

from __future__ import annotations

from cloudshift_lab.sim.bench.rows import Goal, Result, Row

_SIGNS = {"at most": "<=", "at least": ">=", "exactly": "="}
_MARKS = {True: "ok", False: "MISSED", None: ""}


def number(value: float) -> str:
    """A figure with as many digits as it deserves."""
    if value != value:
        return "none"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"


def goal_text(goal: Goal | None) -> str:
    """A goal with its sign; empty where there is none."""
    return "" if goal is None else f"{_SIGNS[goal.order]} {number(goal.limit)}"


def table(result: Result) -> str:
    """Rows, and below them what they were measured with."""
    lines = [("figure", "value", "unit", "goal", "")]
    lines += [_cells(each) for each in result.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}} {unit:<{widths[2]}}  "
        f"{goal:<{widths[3]}}  {mark}".rstrip()
        for name, value, unit, goal, mark in lines
    ]
    notes = [f"  {each.name}: {each.note}" for each in result.rows if each.note]
    here = result.machine
    about = [
        f"{result.bench} ({result.size}) at {result.commit}, {result.date}, "
        f"{result.seconds:.0f} s, {here.num_cpus} x {here.cpu}, load before {here.load_before:g}",
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    ]
    return "\n".join([*text, "", *notes, *about])


def _cells(each: Row) -> tuple[str, str, str, str, str]:
    return (
        each.name, number(each.value), each.unit, goal_text(each.goal), _MARKS[each.passed]
    )  # fmt: skip
