"""The SQL behind the named queries; all of it reads small results from wide tables."""

from __future__ import annotations

CREATE_TABLES = (
    """CREATE TABLE IF NOT EXISTS step (
        ts TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL, generation BIGINT NOT NULL,
        rank INTEGER NOT NULL, step BIGINT NOT NULL, loss DOUBLE, tokens BIGINT, step_s DOUBLE,
        sections MAP(VARCHAR, DOUBLE))""",
    "ALTER TABLE step ADD COLUMN IF NOT EXISTS sections MAP(VARCHAR, DOUBLE)",
    """CREATE TABLE IF NOT EXISTS event (
        ts TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL, generation BIGINT NOT NULL,
        kind VARCHAR NOT NULL, severity VARCHAR NOT NULL, detail VARCHAR NOT NULL)""",
)

LATEST = (
    """
    WITH recent AS (
        SELECT step, loss, ts FROM step
        WHERE run_id = $1 AND generation = $2 AND ts >= make_timestamp($3)
    )
    SELECT step, avg(loss) FILTER (isfinite(loss)), epoch(max(ts))
    FROM recent WHERE step = (SELECT max(step) FROM recent) GROUP BY step
    """,
    """
    SELECT last_step, avg(last_loss), epoch(max(last_ts)) FROM step_10s
    WHERE run_id = $1 AND generation = $2 AND last_ts >= make_timestamp($3)
    GROUP BY last_step ORDER BY last_step DESC LIMIT 1
    """,
    """
    SELECT last_step, avg(last_loss), epoch(max(last_ts)) FROM step_1m
    WHERE run_id = $1 AND generation = $2 AND last_ts >= make_timestamp($3)
    GROUP BY last_step ORDER BY last_step DESC LIMIT 1
    """,
)
"""The newest step of a generation (``$2``) since ``$3``: of the finest rows that are there."""

THROUGHPUT = """
    WITH per_rank AS (
        SELECT sum(tokens) / sum(step_s) AS tokens_per_s FROM step
        WHERE run_id = $1 AND generation = $2 AND ts > make_timestamp($3)
            AND tokens IS NOT NULL AND step_s > 0
        GROUP BY rank
    )
    SELECT sum(tokens_per_s) FROM per_rank
"""

STEP_CURVE = """
    WITH mine AS (
        SELECT * FROM step WHERE run_id = $1
    ), starts AS (
        SELECT generation, min(step) AS first_step FROM mine GROUP BY generation
    ), bounds AS (
        SELECT generation, min(first_step) OVER (
            ORDER BY generation ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) AS end_step
        FROM starts
    ), per_rank AS (
        SELECT step, any_value(mine.generation) AS generation, max(ts) AS ts,
            arg_max(loss, ts) AS loss, arg_max(tokens, ts) AS tokens, arg_max(step_s, ts) AS step_s
        FROM mine JOIN bounds ON mine.generation = bounds.generation
        WHERE end_step IS NULL OR step < end_step
        GROUP BY step, rank
    ), per_step AS (
        SELECT step, max(generation) AS generation, max(ts) AS ts,
            avg(loss) FILTER (isfinite(loss)) AS loss,
            sum(tokens / step_s) FILTER (step_s > 0) AS tokens_per_s
        FROM per_rank GROUP BY step
    ), bucketed AS (
        SELECT *, ((row_number() OVER (ORDER BY step) - 1) * least($2, count(*) OVER ()))
            // count(*) OVER () AS bucket
        FROM per_step
    )
    SELECT epoch(arg_max(ts, step)), max(step), avg(loss), avg(tokens_per_s), max(generation)
    FROM bucketed GROUP BY bucket ORDER BY bucket
"""
