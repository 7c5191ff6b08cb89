"""Rows to Arrow IPC bytes and back: the only form in which telemetry travels."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.telemetry.schema import SCHEMAS, Row

MICRO_PER_S = 1_000_000


def batch_id(run_id: str, generation: int, nonce: str, number: int) -> str:
    """The identity under which a batch is stored once, however often it is sent.

    Args:
        run_id: The run.
        generation: The attempt's generation.
        nonce: Drawn once per sending process, so that a restarted one reuses no id.
        number: Counts this process's batches from 0.
    """
    return f"{run_id}-g{generation}-{nonce}-{number}"


def encode(table: str, rows: Sequence[Row]) -> bytes:
    """Rows of one table as an Arrow IPC stream.

    Raises:
        UsageError: No such table, or a value does not fit its column.
    """
    schema = schema_of(table)
    try:
        arrays = [
            pa.array([_cell(row, field.name) for row in rows], type=field.type) for field in schema
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        batch.validate(full=True)
        _refuse_nulls(batch, schema)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"telemetry rows do not fit table '{table}' ({error}); mend the emitter"
        ) from error
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def decode(table: str, data: bytes) -> pa.Table:
    """Read and check an Arrow IPC stream.

    Raises:
        UsageError: No such table.
        Corrupt: Not an Arrow stream, another schema, or invalid contents.
    """
    schema = schema_of(table)
    try:
        found = pa.ipc.open_stream(data).read_all()
        found.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(str(error) or "empty", data) from error
    found = completed(found, schema)
    if found.schema.names != schema.names or found.schema.types != schema.types:
        raise Corrupt(
            f"telemetry batch has other columns than table '{table}'; "
            "update the older side so that agent and conductor have the same version",
            expected=str(schema.names),
            found=str(found.schema.names),
        )
    try:
        _refuse_nulls(found, schema)
    except ValueError as error:
        raise _damaged(str(error), data) from error
    return found


def schema_of(table: str) -> pa.Schema:
    """The columns of a table.

    Raises:
        UsageError: No such table; lists the ones that exist.
    """
    if table not in SCHEMAS:
        raise UsageError(f"no telemetry table '{table}'; choose one of: {', '.join(SCHEMAS)}")
    return SCHEMAS[table]


def completed(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """A batch from before the newest columns were added, with these empty."""
    num_known = len(data.schema.names)
    if data.schema.names != schema.names[:num_known]:
        return data
    for field in list(schema)[num_known:]:
        if field.nullable:
            data = data.append_column(field, pa.nulls(data.num_rows, field.type))
    return data


def _damaged(reason: str, data: bytes) -> Corrupt:
    first_line = reason.splitlines()[0]
    return Corrupt(
        f"telemetry batch is damaged ({first_line}); not stored; send it again",
        num_bytes=len(data),
    )


def _cell(row: Row, name: str) -> object:
    value = getattr(row, name)
    if isinstance(value, dict):
        return list(value.items())
    return round(value * MICRO_PER_S) if name == "ts" else value


def _refuse_nulls(data: pa.RecordBatch | pa.Table, schema: pa.Schema) -> None:
    for position, field in enumerate(schema):
        if not field.nullable and data.column(position).null_count:
            raise ValueError(f"column '{field.name}' has empty cells")
