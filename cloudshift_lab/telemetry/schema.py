"""What is measured: one wide table per kind of row, base units, UTC microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import pyarrow as pa

Severity = Literal["info", "warning", "error"]


class StepRow(msgspec.Struct, frozen=True):
    """One optimizer step as one rank saw it.

    ``ts`` is the wall-clock time at which the step ended, seconds since the epoch, UTC.
    ``tokens`` counts this rank's tokens only; ``step_s`` is the time since the end of the step
    before, so that tokens over seconds is the throughput a researcher would time with a watch.
    ``sections`` are seconds of the step by name, as far as the script times its parts.
    """

    ts: float
    run_id: str
    generation: int
    rank: int
    step: int
    loss: float | None = None
    tokens: int | None = None
    step_s: float | None = None
    sections: dict[str, float] | None = None


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened to an attempt. ``detail`` is JSON text and never holds a secret."""

    ts: float
    run_id: str
    generation: int
    kind: str
    severity: Severity = "info"
    detail: str = "{}"


Row = StepRow | EventRow
_TS = pa.timestamp("us")

SCHEMAS: Mapping[str, pa.Schema] = {
    "step": pa.schema(
        [
            pa.field("ts", _TS, nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("generation", pa.int64(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("step", pa.int64(), nullable=False),
            pa.field("loss", pa.float64()),
            pa.field("tokens", pa.int64()),
            pa.field("step_s", pa.float64()),
            pa.field("sections", pa.map_(pa.string(), pa.float64())),
        ]
    ),
    "event": pa.schema(
        [
            pa.field("ts", _TS, nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("generation", pa.int64(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("severity", pa.string(), nullable=False),
            pa.field("detail", pa.string(), nullable=False),
        ]
    ),
}


def table_of(row: Row) -> str:
    """The table a row belongs to."""
    return "step" if isinstance(row, StepRow) else "event"
