"""The DuckDB file that one process owns: taking batches in once, and answering named queries."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from cloudshift_lab.core.errors import CloudshiftError, Corrupt, Exhausted, Unavailable, UsageError
from cloudshift_lab.core.run import Progress
from cloudshift_lab.core.views import Series
from cloudshift_lab.telemetry import queries
from cloudshift_lab.telemetry.batch import decode
from cloudshift_lab.telemetry.salvage import open_database

MEMORY_LIMIT = "512MB"
NUM_THREADS = 2
READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_LOCKDOWN = (
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)


class TelemetryStore:
    """Telemetry of all runs of one conductor.

    Safe to use from several threads: writers take turns, every call has a cursor of its own.
    ``warnings`` says what was found damaged when the file was opened, where it was put, and what
    to do.

    Args:
        path: The DuckDB file; made with its folder when absent. One process at a time.

    Raises:
        Conflict: Another process has the file open.
        Denied: The file may not be read or written.
        Unavailable: The file system failed in another way.
    """

    def __init__(self, path: Path | str, *, memory_limit: str = MEMORY_LIMIT) -> None:
        config = {
            "memory_limit": memory_limit,
            "threads": str(NUM_THREADS),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        self._connection, self.warnings = open_database(Path(path), config)
        self._cursors = threading.Lock()
        self._writers = threading.Lock()
        with self._cursor() as cursor:
            for statement in (*queries.CREATE_TABLES, *_LOCKDOWN):
                cursor.execute(statement).fetchall()

    def ingest(self, batch_id: str, table: str, data: bytes) -> bool:
        """Store a batch exactly once; when this returns it is durable.

        Returns:
            False when a batch of this id was stored before.

        Raises:
            UsageError: No such table, or no batch id.
            Corrupt: The bytes are no valid batch of this table; nothing was stored.
            Exhausted: Memory or disk is used up; nothing was stored.
            Unavailable: The database failed in another way; nothing was stored.
        """
        if not batch_id:
            raise UsageError("a telemetry batch needs an id; mend the sender")
        rows = decode(table, data)
        with self._writers, self._cursor() as cursor:
            cursor.execute("BEGIN TRANSACTION").fetchall()
            try:
                is_new = _insert(cursor, batch_id, table, rows)
                cursor.execute("COMMIT").fetchall()
            except BaseException:
                _roll_back(cursor)
                raise
            return is_new

    def latest(self, run_id: str) -> Progress | None:
        """The newest step of the newest generation; None when the run has sent nothing.

        The loss is the mean over the ranks that reported the step, None unless finite.
        """
        rows = self._rows(queries.LATEST, [run_id])
        if not rows:
            return None
        step, loss, at = rows[0]
        return Progress(
            step=step, loss=loss, tokens_per_s=self.throughput_tokens_per_s(run_id), at=at
        )

    def throughput_tokens_per_s(self, run_id: str, window_s: float = 60.0) -> float | None:
        """Measured tokens per second, summed over the ranks of the newest generation.

        Args:
            run_id: The run.
            window_s: How far back from the newest row to look, seconds, > 0.

        Returns:
            None when no row of the window has both tokens and a duration.
        """
        rows = self._rows(queries.THROUGHPUT, [run_id, window_s])
        tokens_per_s: float | None = rows[0][0]
        return tokens_per_s

    def losses(self, run_id: str, num_points: int = 200) -> tuple[tuple[int, float], ...]:
        """``(step, loss)`` in order of steps, at most ``num_points``; only finite losses."""
        curve = self.step_curve(run_id, num_points)
        return tuple(
            (step, loss)
            for step, loss in zip(curve.step, curve.loss, strict=True)
            if loss is not None
        )

    def step_curve(self, run_id: str, num_points: int = 500) -> Series:
        """The run's history by step, in at most ``num_points`` buckets of neighbouring steps.

        A bucket shows its last step and that step's time, the mean loss over ranks and steps
        (None where none is finite) and the mean of the tokens per second summed over ranks.
        Where a later generation repeats a step, its values stand; what an earlier generation did
        beyond that point is no longer part of the history and left out.

        Raises:
            UsageError: ``num_points`` is below 1.
        """
        if num_points < 1:
            raise UsageError(f"a curve needs at least 1 point, not {num_points}; mend the call")
        rows = self._rows(queries.STEP_CURVE, [run_id, num_points])
        if not rows:
            return Series(run_id=run_id)
        at, step, loss, tokens_per_s, generation = zip(*rows, strict=True)
        return Series(
            run_id=run_id,
            at=at,
            step=step,
            loss=loss,
            tokens_per_s=tokens_per_s,
            generation=generation,
        )

    def sql(self, query: str, limit: int = 10_000, timeout_s: float = 5.0) -> pa.Table:
        """Run one reading statement of a person's own SQL.

        The statement runs in a read-only transaction of an instance that has no access to files
        and cannot be reconfigured.

        Args:
            query: One SELECT (or WITH, FROM, DESCRIBE, SHOW, EXPLAIN) statement.
            limit: Most rows to return; ``schema.metadata[b"truncated"]`` says if there were more.
            timeout_s: Seconds until the query is interrupted, > 0.

        Raises:
            UsageError: Not one reading statement, or it does not fit the tables.
            Exhausted: The time or memory limit was reached.
            Corrupt: The database file is damaged.
        """
        if limit < 0 or timeout_s <= 0:
            raise UsageError("a query needs limit >= 0 and timeout_s > 0; mend the call")
        with self._cursor(is_free_sql=True) as cursor:
            _refuse_writing(cursor, query)
            cursor.execute("BEGIN TRANSACTION READ ONLY").fetchall()
            timer = threading.Timer(timeout_s, cursor.interrupt)
            timer.start()
            try:
                return _first_rows(cursor, query, limit)
            finally:
                timer.cancel()
                timer.join()
                _roll_back(cursor)

    def close(self) -> None:
        """Merge the write-ahead log into the file and let go of it."""
        with self._writers, self._cursors:
            self._connection.close()

    def _rows(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(query, parameters).fetchall()
            return rows

    @contextmanager
    def _cursor(self, *, is_free_sql: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._cursors:
                cursor = self._connection.cursor()
            try:
                yield cursor
            finally:
                cursor.close()
        except duckdb.Error as error:
            raise _translate(error, is_free_sql=is_free_sql) from error


def _insert(cursor: duckdb.DuckDBPyConnection, batch_id: str, table: str, rows: pa.Table) -> bool:
    num_new = cursor.execute(
        "INSERT INTO batch VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [batch_id, table, rows.num_rows],
    ).fetchall()[0][0]
    if num_new == 0:
        return False
    cursor.register("incoming", rows)
    cursor.execute(f"INSERT INTO {table} SELECT * FROM incoming").fetchall()
    cursor.unregister("incoming")
    return True


def _refuse_writing(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    """Hold free SQL to one statement: a second one could end the read-only transaction."""
    statements = cursor.extract_statements(query)
    if len(statements) != 1 or statements[0].type not in READING:
        raise UsageError(
            "telemetry takes one reading statement at a time (SELECT, WITH, DESCRIBE, EXPLAIN); "
            "send statements one by one and leave out those that change something"
        )


def _first_rows(cursor: duckdb.DuckDBPyConnection, query: str, limit: int) -> pa.Table:
    found: pa.Table = cursor.sql(query).limit(limit + 1).to_arrow_table()
    is_truncated = found.num_rows > limit
    return found.slice(0, limit).replace_schema_metadata({"truncated": str(is_truncated).lower()})


def _roll_back(cursor: duckdb.DuckDBPyConnection) -> None:
    try:
        cursor.execute("ROLLBACK").fetchall()
    except duckdb.TransactionException:
        return  # the failure has ended the transaction already


def _translate(error: duckdb.Error, *, is_free_sql: bool) -> CloudshiftError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, duckdb.InterruptException):
        return Exhausted("the query took too long; narrow it or ask for a longer time limit")
    if isinstance(error, duckdb.OutOfMemoryException):
        return Exhausted(f"telemetry needs more memory or disk ({reason}); narrow the query")
    if "orrupt" in reason or "checksum" in reason or "invalidated" in reason:
        return Corrupt(
            f"the telemetry file is damaged ({reason}); stop and start the conductor: "
            "it sets the damaged part aside and goes on"
        )
    if is_free_sql and not isinstance(error, duckdb.IOException | duckdb.ConnectionException):
        return UsageError(f"telemetry cannot run this ({reason}); mend the query")
    return Unavailable(f"telemetry database failed ({reason}); try again")
