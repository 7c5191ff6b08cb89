"""A rank's chunk table: columns in a safetensors file (FORMAT.md section 7)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloudshift_lab.checkpoint.layout import MAX_CHUNK_BYTES, ObjectRef
from cloudshift_lab.core.errors import Corrupt

_COLUMNS: dict[str, np.dtype[Any]] = {
    "id": np.dtype("u1"),
    "raw_len": np.dtype("<u4"),
    "codec": np.dtype("u1"),
    "width": np.dtype("u1"),
    "pack": np.dtype("<u4"),
    "offset": np.dtype("<u8"),
    "stored_len": np.dtype("<u4"),
    "xxh3": np.dtype("<u8"),
}


class Operand(NamedTuple):
    """Bytes that a delta is decoded with.

    The ``length`` bytes that begin ``skip`` bytes into the raw bytes of ``chunks``, back to back.
    """

    chunks: tuple[ChunkLocation, ...]
    skip: int
    length: int


class ChunkLocation(NamedTuple):
    """Where a chunk's blob lies and how to decode it. ``pack`` is its blake3 hex.

    ``refs`` are what a delta is decoded with; other codecs need nothing but the blob.
    """

    id: bytes
    raw_len: int
    codec: int
    width: int
    pack: str
    pack_size: int
    offset: int
    stored_len: int
    xxh3: int
    refs: tuple[Operand, ...] = ()


class ChunkTable:
    """The rows of one index, with the record's packs to resolve them.

    Invariant: every row lies inside its pack and within the format's limits.
    """

    def __init__(self, columns: dict[str, npt.NDArray[Any]], packs: tuple[ObjectRef, ...]) -> None:
        self._columns = columns
        self.packs = packs

    def __len__(self) -> int:
        return len(self._columns["raw_len"])

    @property
    def raw_lens(self) -> npt.NDArray[Any]:
        return self._columns["raw_len"]

    def row(self, number: int) -> ChunkLocation:
        """One chunk, resolved."""
        row = tuple(int(self._columns[name][number]) for name in list(_COLUMNS)[1:])
        return self._resolve(self._columns["id"][number].tobytes(), row)

    def rows(self) -> list[ChunkLocation]:
        """All chunks, resolved."""
        lists = [self._columns[name].tolist() for name in list(_COLUMNS)[1:]]
        ids = self._columns["id"].tobytes()
        return [
            self._resolve(ids[32 * i : 32 * i + 32], row)
            for i, row in enumerate(zip(*lists, strict=True))
        ]

    def _resolve(self, chunk_id: bytes, row: tuple[int, ...]) -> ChunkLocation:
        raw_len, codec, width, number, offset, stored_len, xxh3 = row
        pack = self.packs[number]
        return ChunkLocation(
            chunk_id, raw_len, codec, width, pack.blake3, pack.size, offset, stored_len, xxh3
        )


def pack_table(rows: list[ChunkLocation]) -> tuple[ObjectRef, ...]:
    """The packs that rows refer to, each once, in order of first use."""
    return tuple(
        ObjectRef(pack, size) for pack, size in {r.pack: r.pack_size for r in rows}.items()
    )


def write_index(rows: list[ChunkLocation], packs: tuple[ObjectRef, ...]) -> bytes:
    """Serialise rows; equal rows give equal bytes."""
    numbers = {pack.blake3: i for i, pack in enumerate(packs)}
    ids = np.frombuffer(b"".join(r.id for r in rows), dtype=np.uint8).reshape(-1, 32)
    values = {
        "raw_len": [r.raw_len for r in rows],
        "codec": [r.codec for r in rows],
        "width": [r.width for r in rows],
        "pack": [numbers[r.pack] for r in rows],
        "offset": [r.offset for r in rows],
        "stored_len": [r.stored_len for r in rows],
        "xxh3": [r.xxh3 for r in rows],
    }
    columns = {name: np.array(column, dtype=_COLUMNS[name]) for name, column in values.items()}
    return bytes(save({"id": ids, **columns}))


def read_index(data: bytes, packs: tuple[ObjectRef, ...], key: str) -> ChunkTable:
    """Parse an index whose hash was checked, and bound every number in it.

    Raises:
        Corrupt: Not such a file, or a row points outside its pack or beyond the limits.
    """
    try:
        columns = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Corrupt(f"{key} is not a chunk table ({error}); use another step") from error
    wrong = [name for name, dtype in _COLUMNS.items() if not _fits(columns, name, dtype)]
    if wrong:
        raise Corrupt(f"{key} has no usable column '{wrong[0]}'; use another step")
    if len(columns["id"]) and not _bounded(columns, packs):
        raise Corrupt(f"{key} points outside its packs; use another step")
    return ChunkTable(columns, packs)


def _fits(columns: dict[str, npt.NDArray[Any]], name: str, dtype: np.dtype[Any]) -> bool:
    column = columns.get(name)
    if column is None or column.dtype != dtype or "raw_len" not in columns:
        return False
    rows = columns["raw_len"].shape[0] if columns["raw_len"].ndim == 1 else -1
    return column.shape == ((rows, 32) if name == "id" else (rows,))


def _bounded(columns: dict[str, npt.NDArray[Any]], packs: tuple[ObjectRef, ...]) -> bool:
    if not packs or int(columns["pack"].max()) >= len(packs):
        return False
    sizes = np.array([pack.size for pack in packs], dtype=np.uint64)[columns["pack"]]
    offset, stored = columns["offset"], columns["stored_len"].astype(np.uint64)
    inside = (offset <= sizes) & (stored <= sizes - np.minimum(offset, sizes))
    small = (columns["raw_len"] <= MAX_CHUNK_BYTES) & (columns["stored_len"] <= columns["raw_len"])
    return bool((inside & small & (columns["stored_len"] > 0)).all())
