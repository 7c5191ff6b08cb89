"""The SQL of the rollups: 10 s per rank, 1 min per run; sums that can be added up again."""

from __future__ import annotations

TEN_S_US = 10_000_000
MINUTE_US = 60_000_000

CREATE_TABLES = (
    """CREATE TABLE IF NOT EXISTS taken (
        sender VARCHAR NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS step_10s (
        bucket TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL, generation BIGINT NOT NULL,
        rank INTEGER NOT NULL, num_rows BIGINT NOT NULL, first_step BIGINT NOT NULL,
        last_step BIGINT NOT NULL, first_ts TIMESTAMP NOT NULL, last_ts TIMESTAMP NOT NULL,
        last_loss DOUBLE, loss_sum DOUBLE, num_losses BIGINT NOT NULL, tokens BIGINT,
        tokens_s DOUBLE, num_timed BIGINT NOT NULL, step_s_sum DOUBLE, step_s_max DOUBLE)""",
    """CREATE TABLE IF NOT EXISTS step_1m (
        bucket TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL, generation BIGINT NOT NULL,
        num_ranks BIGINT NOT NULL, num_rows BIGINT NOT NULL, first_step BIGINT NOT NULL,
        last_step BIGINT NOT NULL, first_ts TIMESTAMP NOT NULL, last_ts TIMESTAMP NOT NULL,
        last_loss DOUBLE, loss_sum DOUBLE, num_losses BIGINT NOT NULL, tokens_per_s DOUBLE,
        step_s DOUBLE, step_s_max DOUBLE, slowest_rank INTEGER)""",
    """CREATE TABLE IF NOT EXISTS section_10s (
        bucket TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL, generation BIGINT NOT NULL,
        rank INTEGER NOT NULL, section VARCHAR NOT NULL, num_rows BIGINT NOT NULL,
        seconds DOUBLE, seconds_max DOUBLE)""",
    "CREATE TABLE IF NOT EXISTS rolled (level VARCHAR NOT NULL, until_us BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dirty_1m (bucket TIMESTAMP NOT NULL)",
)

TEN_S = """
    SELECT time_bucket(INTERVAL 10 SECOND, ts) AS bucket, run_id, generation, rank,
        count(*) AS num_rows, min(step) AS first_step, max(step) AS last_step,
        min(ts) AS first_ts, max(ts) AS last_ts,
        arg_max(loss, step) FILTER (isfinite(loss)) AS last_loss,
        sum(loss) FILTER (isfinite(loss)) AS loss_sum,
        count(*) FILTER (isfinite(loss)) AS num_losses,
        CAST(sum(tokens) FILTER (step_s > 0) AS BIGINT) AS tokens,
        sum(step_s) FILTER (step_s > 0 AND tokens IS NOT NULL) AS tokens_s,
        count(step_s) AS num_timed, sum(step_s) AS step_s_sum, max(step_s) AS step_s_max
    FROM {rows} GROUP BY 1, run_id, generation, rank
"""

SECTIONS = """
    SELECT time_bucket(INTERVAL 10 SECOND, ts) AS bucket, run_id, generation, rank,
        entry.key AS section, count(*) AS num_rows, sum(entry.value) AS seconds,
        max(entry.value) AS seconds_max
    FROM (
        SELECT ts, run_id, generation, rank, unnest(map_entries(sections)) AS entry FROM {rows}
    ) GROUP BY 1, run_id, generation, rank, section
"""

MINUTE = """
    SELECT bucket, run_id, generation, count(*) AS num_ranks,
        CAST(sum(num_rows) AS BIGINT) AS num_rows, min(first_step) AS first_step,
        max(last_step) AS last_step, min(first_ts) AS first_ts, max(last_ts) AS last_ts,
        avg(last_loss) AS last_loss, sum(loss_sum) AS loss_sum,
        CAST(sum(num_losses) AS BIGINT) AS num_losses, sum(tokens_per_s) AS tokens_per_s,
        avg(step_s) AS step_s, max(step_s_max) AS step_s_max, arg_max(rank, step_s) AS slowest_rank
    FROM (
        SELECT time_bucket(INTERVAL {width_s} SECOND, bucket) AS bucket, run_id, generation, rank,
            sum(num_rows) AS num_rows, min(first_step) AS first_step, max(last_step) AS last_step,
            min(first_ts) AS first_ts, max(last_ts) AS last_ts,
            arg_max(last_loss, last_step) AS last_loss, sum(loss_sum) AS loss_sum,
            sum(num_losses) AS num_losses, sum(tokens) / nullif(sum(tokens_s), 0) AS tokens_per_s,
            sum(step_s_sum) / nullif(sum(num_timed), 0) AS step_s, max(step_s_max) AS step_s_max
        FROM ({rows}) GROUP BY 1, run_id, generation, rank
    ) GROUP BY bucket, run_id, generation
"""

EXTENTS = """
    SELECT run_id, generation, CAST(sum(num_rows) AS BIGINT), epoch_us(min(first_ts)),
        epoch_us(max(last_ts)), max(num_ranks)
    FROM (
        SELECT run_id, generation, num_rows, first_ts, last_ts, num_ranks FROM step_1m
        UNION ALL
        SELECT run_id, generation, num_rows, first_ts, last_ts, rank + 1
        FROM step_10s WHERE bucket >= make_timestamp({minute_until_us:d})
        UNION ALL
        SELECT run_id, generation, 1, ts, ts, rank + 1
        FROM step WHERE ts >= make_timestamp({ten_s_until_us:d})
    ) GROUP BY run_id, generation
"""

EXTENTS_OF_INCOMING = """
    SELECT run_id, generation, count(*), epoch_us(min(ts)), epoch_us(max(ts)), max(rank) + 1
    FROM incoming GROUP BY run_id, generation
"""


def between(since_us: int, until_us: int) -> str:
    """Rows of steps of a span of time, its end left out, as SQL after FROM."""
    return (
        f"(SELECT * FROM step WHERE ts >= make_timestamp({since_us:d})"
        f" AND ts < make_timestamp({until_us:d}))"
    )


def before(until_us: int) -> str:
    """Incoming rows that are late: of a time that is rolled up already."""
    return f"(SELECT * FROM incoming WHERE ts < make_timestamp({until_us:d}))"


def ten_s_of_run(ten_s_until_us: int, since_us: int | None = None) -> str:
    """A run (``$1``) by rank and 10 s up to now: what is rolled up, and the newest rows."""
    recent = "" if since_us is None else f" AND bucket >= make_timestamp({since_us:d})"
    newest = f"(SELECT * FROM step WHERE run_id = $1 AND ts >= make_timestamp({ten_s_until_us:d}))"
    return f"SELECT * FROM step_10s WHERE run_id = $1{recent} UNION ALL {TEN_S.format(rows=newest)}"


def points_of_ten_s(ten_s_until_us: int) -> str:
    """A run by 10 s, all ranks together."""
    return MINUTE.format(width_s=10, rows=ten_s_of_run(ten_s_until_us))


def points_of_minutes(ten_s_until_us: int, minute_until_us: int) -> str:
    """A run by minutes up to now, all ranks together."""
    newest = MINUTE.format(width_s=60, rows=ten_s_of_run(ten_s_until_us, minute_until_us))
    return f"SELECT * FROM step_1m WHERE run_id = $1 UNION ALL {newest}"


CURVE = """
    WITH points AS ({points}), starts AS (
        SELECT generation, min(first_step) AS first_step FROM points GROUP BY generation
    ), bounds AS (
        SELECT generation, min(first_step) OVER (
            ORDER BY generation ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) AS end_step
        FROM starts
    ), kept AS (
        SELECT generation, least(last_step, coalesce(end_step - 1, last_step)) AS last_step,
            last_ts, loss_sum, num_losses, tokens_per_s
        FROM points JOIN bounds USING (generation)
        WHERE end_step IS NULL OR points.first_step < end_step
    ), bucketed AS (
        SELECT *, ((row_number() OVER (ORDER BY last_step, generation) - 1)
            * least($2, count(*) OVER ())) // count(*) OVER () AS number
        FROM kept
    )
    SELECT epoch(arg_max(last_ts, last_step)), max(last_step),
        sum(loss_sum) / nullif(sum(num_losses), 0), avg(tokens_per_s), max(generation)
    FROM bucketed GROUP BY number ORDER BY number
"""
