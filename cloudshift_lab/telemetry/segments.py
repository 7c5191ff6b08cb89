"""A second copy of what was taken in, on this disk, until the archive has it.

A segment holds records one after the other: ``CSR1``, the length and the crc32 of what follows
(little endian, 4 bytes each), then one line of JSON and an Arrow IPC stream. A torn or damaged
record is passed over. A record is written before its rows are committed: of two with one batch id
the first counts, and a batch that was never acknowledged may be there too.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Container, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa

from cloudshift_lab.core.errors import Exhausted
from cloudshift_lab.telemetry.intake import Offered

MAX_SEGMENT_BYTES = 48_000_000
MAX_SPOOL_BYTES = 4_000_000_000
SUFFIX = ".spool"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
_MAGIC = b"CSR1"
_FRAME = struct.Struct("<4sII")
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class _Head(msgspec.Struct, frozen=True):
    table: str
    batches: tuple[tuple[str, int], ...]


class Record(msgspec.Struct, frozen=True):
    """Rows of several batches of one table, with the id of each row's batch."""

    table: str
    batch_ids: pa.StringArray
    rows: pa.Table


class Segments:
    """The spool's files in one folder, of which one is being written. Not for several threads.

    ``num_dropped`` counts files that were deleted because the spool had become too large: what
    they held is in the database alone.

    Args:
        folder: Where they are; made by the first append.
        nonce: Drawn once per process: a name is never used twice, also not in the archive.
        max_bytes: Most bytes of all files together.
    """

    def __init__(self, folder: Path, nonce: str, *, max_bytes: int = MAX_SPOOL_BYTES) -> None:
        self._folder = folder
        self._nonce = nonce
        self._number = 0
        self._max_bytes = max_bytes
        self._path: Path | None = None
        self._file = -1
        self._num_bytes = 0
        self.num_dropped = 0

    def append(self, batches: Sequence[Offered], now_s: float) -> None:
        """Keep batches of one table; they survive this process, not the machine's power.

        Raises:
            Exhausted: The disk does not take them.
        """
        data = _encoded(batches)
        try:
            self._turn(now_s)
            written = os.write(self._file, data)
            self._num_bytes += written
            if written < len(data):
                raise OSError("the disk took a part only")
        except OSError as error:
            raise Exhausted(
                f"cannot write the telemetry spool in {self._folder} ({error}); free disk space"
            ) from error

    def finished(self, now_s: float) -> tuple[Path, ...]:
        """Files that nothing is added to any more, oldest first; one of an hour ago is finished."""
        if self._path is not None and not self._path.name.startswith(_hour(now_s)):
            self.close()
        return tuple(path for path in self._all() if path != self._path)

    def everything(self) -> tuple[Path, ...]:
        """All files, oldest first."""
        return tuple(self._all())

    def close(self) -> None:
        """Finish the file that is being written."""
        if self._path is not None:
            os.close(self._file)
            self._path, self._file, self._num_bytes = None, -1, 0

    def _turn(self, now_s: float) -> None:
        """Begin another file with every hour, and when one is full."""
        hour = _hour(now_s)
        is_of_this_hour = self._path is not None and self._path.name.startswith(hour)
        if is_of_this_hour and self._num_bytes < MAX_SEGMENT_BYTES:
            return
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        began = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H%M%S%f")
        path = self._folder / f"{began}-{self._number:05d}-{self._nonce}{SUFFIX}"
        self._file = os.open(path, _NEW_FILE, 0o600)
        self._path, self._number = path, self._number + 1

    def _make_room(self) -> None:
        files = self._all()
        sizes = [path.stat().st_size for path in files]
        while files and sum(sizes) > self._max_bytes - MAX_SEGMENT_BYTES:
            files.pop(0).unlink()
            sizes.pop(0)
            self.num_dropped += 1

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{SUFFIX}"))


def read(path: Path, known: Container[str] = ()) -> Iterator[Record]:
    """Every whole record of a segment that has a batch which is not ``known``; each batch once."""
    seen: set[str] = set()
    for payload in _payloads(path.read_bytes()):
        line, _, stream = payload.partition(b"\n")
        head = msgspec.json.decode(line, type=_Head)
        if all(name in known for name, _ in head.batches):
            continue
        rows = pa.ipc.open_stream(stream).read_all()
        ids = pa.array(
            itertools.chain.from_iterable([name] * count for name, count in head.batches),
            pa.string(),
        )
        is_new = pa.array(
            itertools.chain.from_iterable(
                [name not in seen] * count for name, count in head.batches
            ),
            pa.bool_(),
        )
        seen.update(name for name, _ in head.batches)
        yield Record(head.table, ids.filter(is_new), rows.filter(is_new))


def _payloads(data: bytes) -> Iterator[bytes]:
    at = data.find(_MAGIC)
    while at >= 0 and at + _FRAME.size <= len(data):
        _, size, check = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + size]
        if len(payload) == size and zlib.crc32(payload) == check:
            yield payload
            at = data.find(_MAGIC, at + _FRAME.size + size)
        else:
            at = data.find(_MAGIC, at + 1)


def _encoded(batches: Sequence[Offered]) -> bytes:
    head = _Head(batches[0].table, tuple((b.batch_id, b.rows.num_rows) for b in batches))
    rows = pa.concat_tables([batch.rows for batch in batches])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_OPTIONS) as writer:
        writer.write_table(rows.combine_chunks())
    payload: bytes = msgspec.json.encode(head) + b"\n" + sink.getvalue().to_pybytes()
    return _FRAME.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _hour(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H")
