"""What a run's attempts have done: kept steps, the tokens in them, and the time they took."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import pyarrow as pa


class Source(Protocol):
    """Answers reading SQL: the store itself, or a stand-in."""

    def sql(self, query: str, limit: int = ...) -> pa.Table: ...


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's steps that no later one did again.

    Args:
        generation: Of the attempt.
        steps: How many.
        last_step: The newest.
        tokens: Of all ranks; None where one step or rank does not say.
        step_s: A step's median duration, seconds; None: no step was timed.
        tokens_per_s: Of all ranks while they train; None where that is not known.
    """

    generation: int
    steps: int
    last_step: int
    tokens: int | None
    step_s: float | None
    tokens_per_s: float | None


def work_done(source: Source, run_id: str) -> tuple[Done, ...]:
    """Per attempt, oldest first, what it did that counts; only of steps kept one by one."""
    run = "'" + run_id.replace("'", "''") + "'"
    table = source.sql(_DONE.format(run=run), limit=10_000)
    return tuple(Done(**row) for row in table.to_pylist())


_DONE: Any = """
    WITH mine AS (
        SELECT generation, rank, step, arg_max(tokens, ts) AS tokens, arg_max(step_s, ts) AS step_s
        FROM step WHERE run_id = {run} GROUP BY generation, rank, step
    ), starts AS (
        SELECT generation, min(step) AS first_step FROM mine GROUP BY generation
    ), bounds AS (
        SELECT generation, min(first_step) OVER (
            ORDER BY generation ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS end_step
        FROM starts
    ), kept AS (
        SELECT mine.* FROM mine JOIN bounds USING (generation)
        WHERE end_step IS NULL OR step < end_step
    ), per_rank AS (
        SELECT generation, rank, sum(tokens) / nullif(sum(step_s), 0) AS tokens_per_s
        FROM kept WHERE tokens IS NOT NULL AND step_s > 0 GROUP BY generation, rank
    ), pace AS (
        SELECT generation, sum(tokens_per_s) AS tokens_per_s FROM per_rank GROUP BY generation
    )
    SELECT generation, count(DISTINCT step) AS steps, max(step) AS last_step,
        CASE WHEN count(*) = count(tokens) THEN CAST(sum(tokens) AS BIGINT) END AS tokens,
        median(step_s) AS step_s, any_value(pace.tokens_per_s) AS tokens_per_s
    FROM kept LEFT JOIN pace USING (generation)
    GROUP BY generation ORDER BY generation
"""
