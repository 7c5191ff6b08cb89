"""The archive: every hour's rows as Parquet in any store, with the batch each one came in."""

from __future__ import annotations

import io
from collections.abc import Container, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.storage.store import Store
from cloudshift_lab.telemetry import segments
from cloudshift_lab.telemetry.batch import completed
from cloudshift_lab.telemetry.schema import SCHEMAS

BATCH = "batch_id"
_ROW_GROUP_ROWS = 120_000
_SUFFIX = ".parquet"


def archive_segment(store: Store, path: Path) -> None:
    """Write a finished segment's rows into the archive, one file per table, then delete it.

    Done again after it was cut off, it writes the same files.

    Raises:
        CloudshiftError: The store failed; the segment is still there.
    """
    for table, schema in SCHEMAS.items():
        records = [record for record in segments.read(path) if record.table == table]
        if records:
            rows = pa.concat_tables([completed(each.rows, schema) for each in records])
            ids = pa.chunked_array([record.batch_ids for record in records], pa.string())
            rows = rows.append_column(BATCH, ids.dictionary_encode())
            store.put(f"{table}/{path.stem}{_SUFFIX}", _parquet(rows))
    path.unlink()


def archived(store: Store, table: str) -> list[str]:
    """The keys of a table's files, oldest first."""
    return [key for key in sorted(store.list(table)) if key.endswith(_SUFFIX)]


def read_archive(store: Store, key: str) -> pa.Table:
    """One file's rows, with their ``batch_id``.

    Raises:
        Corrupt: It is no such file.
        NotFound, Unavailable: The store does not have it, or does not answer.
    """
    try:
        return pq.read_table(io.BytesIO(store.get(key)))
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(
            f"{store.url}/{key} is damaged ({error}); restore it from a copy or delete it"
        ) from error


def of_segment(path: Path, known: Container[str]) -> Iterator[tuple[str, pa.Table]]:
    """A segment's rows as the archive would have them: table, rows with their ``batch_id``.

    Records of which every batch is ``known`` are passed over.
    """
    for record in segments.read(path, known):
        rows = completed(record.rows, SCHEMAS[record.table])
        yield record.table, rows.append_column(BATCH, record.batch_ids)


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=_ROW_GROUP_ROWS)
    return bytes(sink.getvalue().to_pybytes())
