"""What must hold after every move, judged from the logs, the telemetry and the script's trace."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.sim.bench.trace import Traced
from cloudshift_lab.storage.logstate import LogRecord, LogState


class Published(NamedTuple):
    """One step row of the telemetry."""

    generation: int
    rank: int
    step: int
    loss: float | None


def owners(states: Iterable[LogState]) -> list[tuple[int, str]]:
    """Who owns the run now: generation and owner of every log that was not handed over."""
    return [(s.generation, s.owner) for s in states if s.owner is not None and s.home_url is None]


def one_owner(states: Sequence[LogState], generation: int) -> list[str]:
    """Exactly one log has an owner, and it is the attempt that the conductor believes in."""
    found = owners(states)
    if len(found) != 1:
        return [f"{len(found)} owners: {found}"]
    if found[0][0] != generation:
        return [f"generation {found[0][0]} owns the run, the conductor believes in {generation}"]
    return []


def fenced_commits(states: Iterable[LogState]) -> list[str]:
    """Commits that landed although their owner's time was over; judged record by record."""
    found = []
    for number, state in enumerate(states):
        owner: tuple[int, str] | None = None
        is_handed_over = False
        for record in state.records:
            if record.kind == "acquire":
                owner, is_handed_over = (record.generation, record.owner), False
            elif record.kind in ("handover", "release"):
                owner, is_handed_over = None, is_handed_over or record.kind == "handover"
            elif record.kind == "commit" and (record.generation, record.owner) != owner:
                found.append(f"log {number} record {record.seq}: {record.owner} is not {owner}")
            elif record.kind == "cancel" and is_handed_over:
                found.append(f"log {number} record {record.seq}: cancelled after the handover")
    return found


def commits_of(states: Iterable[LogState]) -> list[LogRecord]:
    """All commits ever written, forgotten ones too, by generation."""
    records = (r for state in states for r in state.records if r.kind == "commit")
    return sorted(records, key=lambda each: (each.generation, each.seq))


def commits_go_on(states: Iterable[LogState]) -> list[str]:
    """No step is committed twice but by the attempt that takes it over; none goes back."""
    found, newest, owner = [], -1, 0
    for each in commits_of(states):
        step = each.step if each.step is not None else -1
        is_first = each.generation != owner
        if step < newest or (step == newest and not is_first):
            found.append(f"generation {each.generation} committed step {step} after {newest}")
        newest, owner = max(newest, step), each.generation
    return found


def published(client: Client, run_id: str) -> tuple[Published, ...]:
    """Every step row that the conductor has of a run."""
    table = pa.ipc.open_stream(
        io.BytesIO(
            client.sql(f"SELECT generation, rank, step, loss FROM step WHERE run_id = '{run_id}'")
        )
    ).read_all()
    columns = (table.column(name).to_pylist() for name in Published._fields)
    return tuple(Published(*row) for row in zip(*columns, strict=True))


def published_twice(
    rows: Sequence[Published], states: Sequence[LogState], revived: frozenset[int]
) -> list[str]:
    """A generation never publishes a step at or before the commit that it began from."""
    commits, found = commits_of(states), []
    for generation in sorted({row.generation for row in rows}):
        own = [row.step for row in rows if row.generation == generation and row.rank == 0]
        base = max((c.step or 0 for c in commits if c.generation < generation), default=0)
        if own and min(own) <= base:
            found.append(f"generation {generation} published step {min(own)} again, after {base}")
        if generation not in revived:
            again = [step for step, times in Counter(own).items() if times > 1]
            found += [f"generation {generation} published step {s} twice" for s in again[:3]]
    return found


def lost_between(rows: Sequence[Published], generations: range, base: int) -> int:
    """Steps that attempts published beyond what their successor began from."""
    return len({r.step for r in rows if r.generation in generations and r.step > base})


def other_losses(rows: Iterable[Published], control: Mapping[tuple[int, int], float]) -> list[str]:
    """Published losses that are not the control's."""
    return [
        f"generation {row.generation} rank {row.rank} step {row.step}: loss {row.loss!r}"
        for row in rows
        if row.loss != control.get((row.rank, row.step))
    ]


def other_traces(trace: Iterable[Traced], control: Mapping[tuple[int, int], float]) -> list[str]:
    """Executed steps, rehearsed and repeated ones too, whose loss is not the control's."""
    return [
        f"process {each.pid} rank {each.rank} step {each.step}: loss {each.loss!r}"
        for each in trace
        if each.loss != control.get((each.rank, each.step))
    ]


def missing_steps(trace: Iterable[Traced], last: int) -> list[str]:
    """Steps that no rank ever executed.

    One rank's line is enough: its optimizer has the gradients of all. A rank that is killed with
    them in hand leaves no line, and a survivor may still save that step for it.
    """
    missing = set(range(1, last + 1)) - {each.step for each in trace}
    return [f"steps {sorted(missing)[:5]} were never executed"] if missing else []
