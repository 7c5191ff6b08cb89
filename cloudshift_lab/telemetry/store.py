"""The DuckDB file that one process owns: taking batches in once, and answering named queries."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from cloudshift_lab.core.errors import CloudshiftError, Corrupt, Exhausted, Unavailable, UsageError
from cloudshift_lab.core.run import Progress
from cloudshift_lab.core.views import Series
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.file import FileStore
from cloudshift_lab.storage.store import Store
from cloudshift_lab.telemetry import queries, rollup_queries
from cloudshift_lab.telemetry.archive import (
    BATCH,
    archive_segment,
    archived,
    of_segment,
    read_archive,
)
from cloudshift_lab.telemetry.batch import MICRO_PER_S, decode
from cloudshift_lab.telemetry.intake import Intake, Offered
from cloudshift_lab.telemetry.rollups import Rollups
from cloudshift_lab.telemetry.salvage import ended_uncleanly, open_database
from cloudshift_lab.telemetry.schema import SCHEMAS
from cloudshift_lab.telemetry.seen import Seen, Span
from cloudshift_lab.telemetry.segments import Segments

MEMORY_LIMIT = "512MB"
NUM_THREADS = 2
GATHER_S = 0.15
LATEST_WITHIN_US = 120_000_000
RAW_CURVE_ROWS = 100_000
TEN_S_CURVE_ROWS = 120_000
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
    to do. ``lacks_archive``: it was begun anew, so that ``take_back_archive`` has work.

    Args:
        path: The DuckDB file; made with its folder when absent. One process at a time. Beside it,
            in ``*.spool``, is a second copy of what the archive does not have yet.
        memory_limit: Of DuckDB.
        archive: Where hours go that are over; None: the folder ``*.archive`` beside the file.
        world: Clock.

    Raises:
        Conflict: Another process has the file open.
        Denied: The file may not be read or written.
        Unavailable: The file system failed in another way.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        memory_limit: str = MEMORY_LIMIT,
        archive: Store | None = None,
        world: World = REAL_WORLD,
    ) -> None:
        config = {
            "memory_limit": memory_limit,
            "threads": str(NUM_THREADS),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        path = Path(path).absolute()
        was_cut_off = ended_uncleanly(path)
        self._connection, self.warnings = open_database(path, config)
        self._world = world
        self._spool = Segments(path.with_suffix(".spool"), world.new_id("spool"))
        self._archive = archive or FileStore(f"file://{path.with_suffix('.archive')}")
        self._cursors = threading.Lock()
        self._writers = threading.Lock()
        self._rollups = Rollups()
        self._seen = Seen()
        with self._cursor() as cursor:
            for statement in (
                *queries.CREATE_TABLES, *rollup_queries.CREATE_TABLES, *_LOCKDOWN
            ):  # fmt: skip
                cursor.execute(statement).fetchall()
        with self._transaction() as cursor:
            _take_over_ids(cursor)
        self._load()
        self.lacks_archive = bool(self.warnings) and not any(self._seen.spans())
        if was_cut_off or self.warnings:
            self._take_back_spool()
        self._intake = Intake(self._store, gather_s=GATHER_S)

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
        return self._offer(batch_id, table, data, at_once=True).result()

    def offer(self, batch_id: str, table: str, data: bytes) -> Future[bool]:
        """Check a batch and have it stored with those of other senders that come in a moment.

        Returns:
            Ends as ``ingest`` does.

        Raises:
            UsageError: No such table, or no batch id.
            Corrupt: The bytes are no valid batch of this table; nothing was stored.
        """
        return self._offer(batch_id, table, data, at_once=False)

    def roll(self, now_s: float) -> None:
        """Roll up what has settled by ``now_s``, seconds since the epoch; cheap when often done.

        Raises:
            Exhausted, Unavailable, Corrupt: The database failed; nothing changed.
        """
        with self._writing() as cursor:
            self._rollups.roll(cursor, round(now_s * MICRO_PER_S))

    def forget(self, now_s: float) -> None:
        """Delete what is rolled up and older than it is kept, and merge the write-ahead log.

        Raises:
            Exhausted, Unavailable, Corrupt: The database failed; nothing was forgotten.
        """
        with self._writing() as cursor:
            self._rollups.forget(cursor, round(now_s * MICRO_PER_S))
            cursor.execute("DELETE FROM taken").fetchall()
            _insert(cursor, "taken", _spans_table(self._seen.spans()))
        with self._writers, self._cursor() as cursor:
            cursor.execute("CHECKPOINT").fetchall()

    def archive(self, now_s: float) -> None:
        """Merge the write-ahead log, then move hours that are over from the spool to the archive.

        Raises:
            Exhausted, Unavailable, Denied: The database or the archive failed; what is not
                archived stays in the spool.
        """
        with self._writers:
            with self._cursor() as cursor:
                cursor.execute("CHECKPOINT").fetchall()
            finished = self._spool.finished(now_s)
        for path in finished:
            archive_segment(self._archive, path)

    def take_back_archive(self) -> int:
        """Store again what the archive has and the database does not; how many rows that were.

        Raises:
            Corrupt: A file of the archive is damaged; what came before it is stored.
            Unavailable, Denied, Exhausted: The archive or the database failed; call it again.
        """
        num_rows = 0
        for table in SCHEMAS:
            for key in archived(self._archive, table):
                num_rows += self._take_back(table, read_archive(self._archive, key))
                self.roll(self._world.now())
        self.lacks_archive = False
        return num_rows

    def latest(self, run_id: str) -> Progress | None:
        """The newest step of the newest generation; None when the run has sent nothing.

        The loss is the mean over the ranks that reported the step, None unless finite.
        """
        extents = self._rollups.extents(run_id)
        if not extents:
            return None
        generation = max(extents)
        since_us = extents[generation].last_us - LATEST_WITHIN_US
        for query in queries.LATEST:
            rows = self._rows(query, [run_id, generation, since_us])
            if rows:
                step, loss, at = rows[0]
                speed = self.throughput_tokens_per_s(run_id)
                return Progress(step=step, loss=loss, tokens_per_s=speed, at=at)
        return None

    def throughput_tokens_per_s(self, run_id: str, window_s: float = 60.0) -> float | None:
        """Measured tokens per second, summed over the ranks of the newest generation.

        Args:
            run_id: The run.
            window_s: How far back from the newest row to look, seconds, > 0.

        Returns:
            None when no row of the window has both tokens and a duration.
        """
        extents = self._rollups.extents(run_id)
        if not extents:
            return None
        generation = max(extents)
        since_us = extents[generation].last_us - round(window_s * MICRO_PER_S)
        rows = self._rows(queries.THROUGHPUT, [run_id, generation, since_us])
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
        beyond that point is no longer part of the history and left out. A long run is shown by
        10 s or by minutes; the one in which a generation was abandoned is shown whole then.

        Raises:
            UsageError: ``num_points`` is below 1.
        """
        if num_points < 1:
            raise UsageError(f"a curve needs at least 1 point, not {num_points}; mend the call")
        rows = self._rows(self._curve_query(run_id), [run_id, num_points])
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
        """Store what waits, merge the write-ahead log into the file and let go of it."""
        self._intake.close()
        with self._writers, self._cursors:
            self._spool.close()
            self._connection.close()

    def _offer(self, batch_id: str, table: str, data: bytes, *, at_once: bool) -> Future[bool]:
        if not batch_id:
            raise UsageError("a telemetry batch needs an id; mend the sender")
        return self._intake.offer(Offered(batch_id, table, decode(table, data)), at_once=at_once)

    def _store(self, group: Sequence[Offered]) -> list[bool]:
        """Store a group in one transaction; for each batch whether it was new."""
        with self._writing() as cursor:
            news, ids = self._unseen(group)
            new = [batch for batch, is_new in zip(group, news, strict=True) if is_new]
            for table in sorted({batch.table for batch in new}):
                of_table = [batch for batch in new if batch.table == table]
                self._spool.append(of_table, self._world.now())
                self._insert(cursor, table, pa.concat_tables([each.rows for each in of_table]))
            _insert(cursor, "taken", _spans_table(ids.spans()))
            for batch in new:
                self._seen.add(batch.batch_id)
        return news

    def _take_back_spool(self) -> None:
        """Store what the spool has and the database, after it was cut off or damaged, does not.

        That may be a batch that was never acknowledged: its sender will find it taken.
        """
        num_rows = 0
        for path in self._spool.everything():
            for table, rows in of_segment(path, self._seen):
                num_rows += self._take_back(table, rows)
        if self.warnings:
            self.warnings += (f"{num_rows} rows of telemetry were taken back from the spool",)

    def _take_back(self, table: str, rows: pa.Table) -> int:
        with self._writing() as cursor:
            ids = [name for name in pc.unique(rows[BATCH]).to_pylist() if name not in self._seen]
            rows = rows.filter(pc.is_in(rows[BATCH].cast(pa.string()), pa.array(ids, pa.string())))
            new = Seen()
            for name in ids:
                new.add(name)
                self._seen.add(name)
            self._insert(cursor, table, rows.drop_columns([BATCH]))
            _insert(cursor, "taken", _spans_table(new.spans()))
        return int(rows.num_rows)

    def _unseen(self, group: Sequence[Offered]) -> tuple[list[bool], Seen]:
        """For each batch whether it is new, and the ids of those that are."""
        news, ids = [], Seen()
        for batch in group:
            news.append(batch.batch_id not in self._seen and batch.batch_id not in ids)
            if news[-1]:
                ids.add(batch.batch_id)
        return news, ids

    def _insert(self, cursor: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
        cursor.register("incoming", rows)
        cursor.execute(f"INSERT INTO {table} SELECT * FROM incoming").fetchall()
        if table == "step" and rows.num_rows:
            self._rollups.take(cursor, pc.min(rows.column("ts")).value)
        cursor.unregister("incoming")

    def _curve_query(self, run_id: str) -> str:
        """Over the finest rows that are still there and not too many."""
        extents = self._rollups.extents(run_id).values()
        first_us = min((each.first_us for each in extents), default=0)
        done = self._rollups
        if first_us >= done.raw_from_us and sum(e.num_rows for e in extents) <= RAW_CURVE_ROWS:
            return queries.STEP_CURVE
        num_ten_s = sum(
            each.num_ranks * (each.last_us - each.first_us) // rollup_queries.TEN_S_US
            for each in extents
        )
        if first_us >= done.ten_s_from_us and num_ten_s <= TEN_S_CURVE_ROWS:
            points = rollup_queries.points_of_ten_s(done.ten_s_until_us)
        else:
            points = rollup_queries.points_of_minutes(done.ten_s_until_us, done.minute_until_us)
        return rollup_queries.CURVE.format(points=points)

    def _load(self) -> None:
        """Know what the database holds: ids, extents, how far it is rolled up."""
        with self._cursor() as cursor:
            spans = cursor.execute("SELECT sender, first, last FROM taken").fetchall()
            self._seen = Seen(Span(*each) for each in spans)
            self._rollups.load(cursor)

    @contextmanager
    def _writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction of its own; what is known is read anew when it fails."""
        with self._writers:
            try:
                with self._transaction() as cursor:
                    yield cursor
            except BaseException:
                self._load()
                raise

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._cursor() as cursor:
            cursor.execute("BEGIN TRANSACTION").fetchall()
            try:
                yield cursor
                cursor.execute("COMMIT").fetchall()
            except BaseException:
                _roll_back(cursor)
                raise

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


def _insert(cursor: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    cursor.register("incoming", rows)
    cursor.execute(f"INSERT INTO {table} SELECT * FROM incoming").fetchall()
    cursor.unregister("incoming")


def _spans_table(spans: Iterable[Span]) -> pa.Table:
    senders, firsts, lasts = zip(*spans, strict=True) if (spans := tuple(spans)) else ((), (), ())
    return pa.table({"sender": pa.array(senders, pa.string()), "first": firsts, "last": lasts})


def _take_over_ids(cursor: duckdb.DuckDBPyConnection) -> None:
    """Keep the ids that an older version stored one by one."""
    query = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'batch'"
    if cursor.execute(query).fetchall()[0][0]:
        seen = Seen()
        for (batch_id,) in cursor.execute("SELECT batch_id FROM batch").fetchall():
            seen.add(batch_id)
        _insert(cursor, "taken", _spans_table(seen.spans()))
        cursor.execute("DROP TABLE batch").fetchall()


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
