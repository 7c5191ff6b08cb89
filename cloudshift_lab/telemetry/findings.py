"""What judges of a run read from telemetry, and what they leave there: findings and saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from cloudshift_lab.core.step_rows import Floats, StepRows
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import EventRow, Severity

FOUND, GONE, SAVED, HEALED = "health.found", "health.gone", "saved", "healed"
MOST_ROWS = 10_000
STALL_S = 10.0
STALL_STEPS = 5.0
GAP_S = 0.5
"""Between the end of a step and the beginning of the next; a session of training ends with more."""


class Source(Protocol):
    """Answers reading SQL: the store itself, or a stand-in."""

    def sql(self, query: str, limit: int = ...) -> pa.Table: ...


class Sink(Protocol):
    """Takes batches: the store itself."""

    def ingest(self, batch_id: str, table: str, data: bytes) -> bool: ...


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that followed each other without a break, as the lowest rank saw them; seconds.

    Args:
        generation: Of the attempt.
        first_step: Its first one.
        last_step: Its last one.
        began: When the first step began, wall-clock.
        ended: When the last one ended.
        kept_until: When the last step ended that no later session repeated; None: none is kept.
        step_s: Median duration.
        stalled_s: Time of steps that took far longer, beyond the median.
    """

    generation: int
    first_step: int
    last_step: int
    began: float
    ended: float
    kept_until: float | None
    step_s: float
    stalled_s: float


class Saves(msgspec.Struct, frozen=True):
    """Saves that were seen to be committed: how many, and the training time they took, seconds.

    ``mean_s`` is that of one, ``every_s`` the median time between two; None: not known yet.
    """

    num: int = 0
    lost_s: float = 0.0
    mean_s: float | None = None
    every_s: float | None = None


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A finding as telemetry keeps it; ``until`` None: nothing says that it has gone."""

    key: str
    severity: str
    words: str
    since: float
    until: float | None = None


class _Detail(msgspec.Struct, frozen=True):
    key: str
    words: str = ""
    severity: str = "info"


class _Heal(msgspec.Struct, frozen=True):
    step: int
    words: str


class _Save(msgspec.Struct, frozen=True):
    step: int
    lost_s: float | None = None


def newest_rows(
    source: Source, run_id: str, *, generation: int, since: float | None = None
) -> StepRows:
    """Rows of one generation, of steps that ended after ``since``; the newest ``MOST_ROWS`` only.

    Args:
        source: Where they are.
        run_id: Whose.
        generation: Of which attempt.
        since: Wall-clock seconds of the ranks; None: as far back as there is room for.
    """
    after = "" if since is None else f"AND ts > make_timestamp({round(since * 1_000_000)})"
    table = source.sql(
        f"""SELECT epoch(ts) AS at, rank, step, loss, step_s, sections FROM step
        WHERE run_id = {_quoted(run_id)} AND generation = {generation:d} {after}
        ORDER BY ts DESC, step DESC, rank LIMIT {MOST_ROWS}""",
        limit=MOST_ROWS,
    )
    return _rows(generation, table)


def newest_generation(source: Source, run_id: str) -> int | None:
    """The newest attempt that sent a row; None when none did."""
    query = f"SELECT max(generation) FROM step WHERE run_id = {_quoted(run_id)}"
    found: int | None = source.sql(query, limit=1).column(0)[0].as_py()
    return found


def sessions(source: Source, run_id: str) -> tuple[Session, ...]:
    """All training of a run in the order in which it was done."""
    table = source.sql(_SESSIONS.format(run=_quoted(run_id)), limit=MOST_ROWS)
    return tuple(Session(**row) for row in table.to_pylist())


def summarised_since(source: Source, run_id: str) -> float | None:
    """When the oldest step ended that is kept at least in summary; None while nothing is."""
    query = f"""SELECT epoch(min(first_ts)) AS oldest FROM (
        SELECT first_ts FROM step_10s WHERE run_id = {_quoted(run_id)} UNION ALL
        SELECT first_ts FROM step_1m WHERE run_id = {_quoted(run_id)})"""
    oldest: float | None = source.sql(query, limit=1).column(0)[0].as_py()
    return oldest


def saves(source: Source, run_id: str, *, since: float = 0.0) -> Saves:
    """What was noted with :func:`save_row`, at ``since`` (wall-clock seconds) or later."""
    query = f"""WITH mine AS (
            SELECT CAST(json_extract(detail, '$.lost_s') AS DOUBLE) AS lost_s,
                epoch(ts) - epoch(lag(ts) OVER (ORDER BY ts)) AS gap_s
            FROM event WHERE run_id = {_quoted(run_id)} AND kind = '{SAVED}'
                AND ts >= make_timestamp({round(since * 1_000_000)})
        )
        SELECT count(*) AS num, coalesce(sum(lost_s), 0) AS lost_s, avg(lost_s) AS mean_s,
            median(gap_s) AS every_s FROM mine"""
    return Saves(**source.sql(query, limit=1).to_pylist()[0])


def heals(source: Source, run_id: str) -> tuple[int, ...]:
    """Steps after which ranks began anew in their attempt, as :func:`heal_row` noted them."""
    query = f"""SELECT CAST(json_extract(detail, '$.step') AS BIGINT) AS step FROM event
        WHERE run_id = {_quoted(run_id)} AND kind = '{HEALED}' ORDER BY ts"""
    return tuple(source.sql(query, limit=MOST_ROWS).column("step").to_pylist())


def past_findings(source: Source, run_id: str, *, limit: int = 50) -> tuple[Past, ...]:
    """Findings that were raised, newest first, each with when it went."""
    query = f"""SELECT epoch(ts) AS at, kind, detail FROM event
        WHERE run_id = {_quoted(run_id)} AND kind IN ('{FOUND}', '{GONE}') ORDER BY ts"""
    open_ones: dict[str, Past] = {}
    done: list[Past] = []
    for row in source.sql(query, limit=MOST_ROWS).to_pylist():
        detail = msgspec.json.decode(row["detail"], type=_Detail)
        known = open_ones.pop(detail.key, None)
        if row["kind"] == GONE:
            done += [] if known is None else [msgspec.structs.replace(known, until=row["at"])]
            continue
        since = row["at"] if known is None else known.since
        open_ones[detail.key] = Past(
            key=detail.key, severity=detail.severity, words=detail.words, since=since
        )
    found = sorted((*done, *open_ones.values()), key=lambda each: each.since, reverse=True)
    return tuple(found[:limit])


def found_row(
    run_id: str, generation: int, at: float, *, key: str, words: str, severity: Severity
) -> EventRow:
    """That a finding was raised, or became graver."""
    detail = msgspec.json.encode(_Detail(key, words, severity)).decode()
    return EventRow(at, run_id, generation, FOUND, severity, detail)


def gone_row(run_id: str, generation: int, at: float, *, key: str) -> EventRow:
    """That a finding stands no longer."""
    return EventRow(at, run_id, generation, GONE, detail=msgspec.json.encode(_Detail(key)).decode())


def save_row(
    run_id: str, generation: int, at: float, *, step: int, lost_s: float | None
) -> EventRow:
    """That a step was committed; ``lost_s`` is the training time that its save took."""
    return EventRow(
        at, run_id, generation, SAVED, detail=msgspec.json.encode(_Save(step, lost_s)).decode()
    )


def heal_row(run_id: str, generation: int, at: float, *, step: int, words: str) -> EventRow:
    """That the ranks of an attempt failed and began anew after a step."""
    detail = msgspec.json.encode(_Heal(step, words)).decode()
    return EventRow(at, run_id, generation, HEALED, "warning", detail)


def leave(sink: Sink, batch_id: str, rows: Sequence[EventRow]) -> None:
    """Store events once, whoever sends this batch again.

    Raises:
        Exhausted, Unavailable: The store could not take them.
    """
    if rows:
        sink.ingest(batch_id, "event", encode("event", rows))


def _quoted(text: str) -> str:
    """A string as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _rows(generation: int, table: pa.Table) -> StepRows:
    loss = _numbers(table.column("loss"))[::-1]
    return StepRows(
        generation=generation,
        at=_numbers(table.column("at"))[::-1],
        rank=table.column("rank").to_numpy().astype(np.int64)[::-1],
        step=table.column("step").to_numpy().astype(np.int64)[::-1],
        loss=loss,
        has_loss=np.isfinite(loss),
        step_s=_numbers(table.column("step_s"))[::-1],
        sections_s={
            name: column[::-1] for name, column in _sections(table.column("sections")).items()
        },
    )


def _numbers(column: pa.ChunkedArray) -> Floats:
    """A column of numbers; empty cells are NaN."""
    numbers: Floats = column.to_numpy().astype(np.float64)
    return numbers


def _sections(column: pa.ChunkedArray) -> dict[str, Floats]:
    """A column of maps as one column per key."""
    found: dict[str, Floats] = {}
    row = 0
    for chunk in column.chunks:
        for cell in chunk.to_pylist():
            for name, seconds in cell or ():
                values = found.setdefault(name, np.full(len(column), np.nan))
                values[row] = np.nan if seconds is None else seconds
            row += 1
    return found


_SESSIONS: Any = f"""
    WITH mine AS (
        SELECT generation, step, epoch(ts) AS t, coalesce(step_s, 0) AS step_s,
            lag(step) OVER w AS step_before,
            epoch(ts) - step_s - epoch(lag(ts) OVER w) AS gap_s
        FROM step WHERE run_id = {{run}} AND rank = (SELECT min(rank) FROM step
            WHERE run_id = {{run}})
        WINDOW w AS (PARTITION BY generation ORDER BY ts, step)
    ), marked AS (
        SELECT *, sum(CASE WHEN step_before IS NULL OR step <= step_before OR gap_s > {GAP_S}
                THEN 1 ELSE 0 END)
            OVER (PARTITION BY generation ORDER BY t, step ROWS UNBOUNDED PRECEDING) AS part
        FROM mine
    ), parts AS (
        SELECT generation, part, min(step) AS first_step, max(step) AS last_step,
            arg_min(t - step_s, t) AS began, max(t) AS ended, median(step_s) AS step_s
        FROM marked GROUP BY generation, part
    ), bounded AS (
        SELECT *, min(first_step) OVER (
            ORDER BY began ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS redone_from
        FROM parts
    )
    SELECT generation, first_step, last_step, began, ended, bounded.step_s AS step_s,
        max(t) FILTER (redone_from IS NULL OR step < redone_from) AS kept_until,
        coalesce(sum(marked.step_s - bounded.step_s) FILTER (
            marked.step_s > greatest({STALL_S}, {STALL_STEPS} * bounded.step_s)), 0) AS stalled_s
    FROM bounded JOIN marked USING (generation, part)
    GROUP BY ALL ORDER BY began
"""
