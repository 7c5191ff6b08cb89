"""Rolling up, and what may be forgotten: raw rows 7 days, 10 s for 30 days, minutes for ever.

Rows that arrive after their time was rolled up are late: at 10 s they become a partial sum beside
the others, and the minutes they touch are made again from the 10 s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import duckdb

from cloudshift_lab.telemetry import rollup_queries as sql

DAY_US = 86_400_000_000
SETTLE_US = 20_000_000
KEEP_RAW_US = 7 * DAY_US
KEEP_TEN_S_US = 30 * DAY_US


class Extent(NamedTuple):
    """How much there is of one generation of a run; ``num_ranks`` is one more than the highest."""

    num_rows: int
    first_us: int
    last_us: int
    num_ranks: int

    def together(self, other: Extent) -> Extent:
        """Both."""
        return Extent(
            self.num_rows + other.num_rows,
            min(self.first_us, other.first_us),
            max(self.last_us, other.last_us),
            max(self.num_ranks, other.num_ranks),
        )


class Rollups:
    """How far rows are rolled up and forgotten, and the extents of all runs.

    Methods that write run within the caller's transaction; when it fails, ``load`` again.
    ``ten_s_until_us`` and ``minute_until_us``: rows before are rolled up; ``raw_from_us`` and
    ``ten_s_from_us``: rows before are forgotten. All are microseconds since the epoch.
    """

    def __init__(self) -> None:
        self._until: dict[str, int] = {}
        self._extents: dict[str, dict[int, Extent]] = {}

    @property
    def ten_s_until_us(self) -> int:
        return self._until.get("step_10s", 0)

    @property
    def minute_until_us(self) -> int:
        return self._until.get("step_1m", 0)

    @property
    def raw_from_us(self) -> int:
        return self._until.get("step forgotten", 0)

    @property
    def ten_s_from_us(self) -> int:
        return self._until.get("step_10s forgotten", 0)

    def load(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Know what the database holds."""
        self._until = dict(cursor.execute("SELECT level, until_us FROM rolled").fetchall())
        self._extents = {}
        query = sql.EXTENTS.format(
            ten_s_until_us=self.ten_s_until_us, minute_until_us=self.minute_until_us
        )
        self._extend(cursor.execute(query).fetchall())

    def extents(self, run_id: str) -> dict[int, Extent]:
        """A run's generations; empty when it has sent nothing."""
        return dict(self._extents.get(run_id, {}))

    def take(self, cursor: duckdb.DuckDBPyConnection, first_us: int) -> None:
        """Account for rows of steps in the table ``incoming``, whose earliest is ``first_us``."""
        self._extend(cursor.execute(sql.EXTENTS_OF_INCOMING).fetchall())
        if first_us < self.ten_s_until_us:
            self._roll_up(cursor, sql.before(self.ten_s_until_us))
        if first_us < self.minute_until_us:
            late = sql.before(self.minute_until_us)
            cursor.execute(
                "INSERT INTO dirty_1m SELECT DISTINCT time_bucket(INTERVAL 1 MINUTE, ts)"
                f" FROM {late}"
            ).fetchall()

    def roll(self, cursor: duckdb.DuckDBPyConnection, now_us: int) -> None:
        """Roll up what has settled by now."""
        settled = now_us - SETTLE_US
        ten_s = settled - settled % sql.TEN_S_US
        if ten_s > self.ten_s_until_us:
            self._roll_up(cursor, sql.between(self.ten_s_until_us, ten_s))
            self._set(cursor, "step_10s", ten_s)
        minute = settled - settled % sql.MINUTE_US
        if minute > self.minute_until_us:
            self._roll_minutes(cursor, minute)
            self._set(cursor, "step_1m", minute)

    def forget(self, cursor: duckdb.DuckDBPyConnection, now_us: int) -> None:
        """Delete what is old and rolled up."""
        raw = min(now_us - KEEP_RAW_US, self.ten_s_until_us)
        ten_s = min(now_us - KEEP_TEN_S_US, self.minute_until_us)
        self._delete(cursor, "step", "ts", raw)
        for table in ("step_10s", "section_10s"):
            self._delete(cursor, table, "bucket", ten_s)
        self._set(cursor, "step forgotten", max(raw, self.raw_from_us))
        self._set(cursor, "step_10s forgotten", max(ten_s, self.ten_s_from_us))

    def _extend(self, rows: list[tuple[Any, ...]]) -> None:
        for run_id, generation, *extent in rows:
            generations = self._extents.setdefault(run_id, {})
            found = Extent(*extent)
            before = generations.get(generation)
            generations[generation] = found if before is None else before.together(found)

    @staticmethod
    def _roll_up(cursor: duckdb.DuckDBPyConnection, rows: str) -> None:
        cursor.execute(f"INSERT INTO step_10s {sql.TEN_S.format(rows=rows)}").fetchall()
        cursor.execute(f"INSERT INTO section_10s {sql.SECTIONS.format(rows=rows)}").fetchall()

    def _roll_minutes(self, cursor: duckdb.DuckDBPyConnection, until_us: int) -> None:
        """Roll up the newest minutes, and those again that late rows have touched.

        A minute whose 10 s are forgotten is not made again: late rows of it come beside it.
        """
        since, kept = self.minute_until_us, self.ten_s_from_us
        lowest = cursor.execute("SELECT epoch_us(min(bucket)) FROM dirty_1m").fetchall()[0][0]
        if lowest is None:
            lowest = since
        cursor.execute(
            f"DELETE FROM step_1m WHERE bucket >= make_timestamp({kept:d})"
            " AND bucket IN (SELECT bucket FROM dirty_1m)"
        ).fetchall()
        rows = (
            f"SELECT * FROM step_10s WHERE bucket >= make_timestamp({min(since, lowest):d})"
            f" AND bucket < make_timestamp({until_us:d})"
            f" AND (bucket >= make_timestamp({since:d}) OR time_bucket(INTERVAL 1 MINUTE, bucket)"
            " IN (SELECT bucket FROM dirty_1m))"
        )
        made = sql.MINUTE.format(width_s=60, rows=rows)
        cursor.execute(f"INSERT INTO step_1m {made}").fetchall()
        cursor.execute("DELETE FROM dirty_1m").fetchall()
        if lowest < kept:
            self._delete(cursor, "step_10s", "bucket", kept)

    @staticmethod
    def _delete(cursor: duckdb.DuckDBPyConnection, table: str, column: str, until_us: int) -> None:
        cursor.execute(
            f"DELETE FROM {table} WHERE {column} < make_timestamp({until_us:d})"
        ).fetchall()

    def _set(self, cursor: duckdb.DuckDBPyConnection, level: str, until_us: int) -> None:
        cursor.execute("DELETE FROM rolled WHERE level = ?", [level]).fetchall()
        cursor.execute("INSERT INTO rolled VALUES (?, ?)", [level, until_us]).fetchall()
        self._until[level] = until_us
