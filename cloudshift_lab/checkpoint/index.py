"""A rank's chunk table: columns in a safetensors file (FORMAT.md section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloudshift_lab.checkpoint.codecs import (
    ADAMW_V,
    ADAMW_W,
    DERIVED,
    LEVELS,
    XOR_PLANES_ZSTD,
)
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
_REF_COLUMNS: dict[str, np.dtype[Any]] = {"refs": np.dtype("<u4"), "skip": np.dtype("<u4")}
MAX_OPERANDS = 3
MOST_UNFOLDED, MOST_UNFOLDED_PER_ROW = 65_536, 64
"""Chunks that all rows together may be decoded with, counted once for each use on each level."""
_NO_REF = 2**32 - 1
_MAX_RUN = 64
_UNKNOWN_LEVEL = 99


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

    ``num_bases`` rows at the end belong to no box: other rows refer to them.

    Invariant: every row lies inside its pack and within the format's limits, and refers only to
    rows of a lower level.

    Raises:
        Corrupt: A reference leads nowhere, or all of them together to far too much.
    """

    def __init__(self, columns: dict[str, npt.NDArray[Any]], packs: tuple[ObjectRef, ...]) -> None:
        self._columns = columns
        self.packs = packs
        self.has_refs = "refs" in columns
        self.num_bases = int(columns["bases"][0]) if self.has_refs else 0
        self._resolved = _Resolver(self._plain_rows()).rows(columns) if self.has_refs else []

    def __len__(self) -> int:
        return len(self._columns["raw_len"])

    @property
    def raw_lens(self) -> npt.NDArray[Any]:
        return self._columns["raw_len"]

    def row(self, number: int) -> ChunkLocation:
        """One chunk, resolved."""
        if self.has_refs:
            return self._resolved[number]
        row = tuple(int(self._columns[name][number]) for name in list(_COLUMNS)[1:])
        return self._resolve(self._columns["id"][number].tobytes(), row)

    def rows(self) -> list[ChunkLocation]:
        """All chunks, resolved."""
        return list(self._resolved) if self.has_refs else self._plain_rows()

    def _plain_rows(self) -> list[ChunkLocation]:
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


class _Resolver:
    """Gives rows what they refer to, from the lowest level up: each is made once, and shared."""

    def __init__(self, plain: list[ChunkLocation]) -> None:
        self._rows = plain
        self._levels = [LEVELS.get(row.codec, _UNKNOWN_LEVEL) for row in plain]
        self._unfolded = [1] * len(plain)
        self._left = MOST_UNFOLDED + MOST_UNFOLDED_PER_ROW * len(plain)

    def rows(self, columns: dict[str, npt.NDArray[Any]]) -> list[ChunkLocation]:
        """All rows, resolved."""
        refs, skips = columns["refs"].tolist(), columns["skip"].tolist()
        for number in sorted(range(len(self._rows)), key=self._levels.__getitem__):
            row = self._rows[number]
            operands = self._operands(number, [at for at in refs[number] if at != _NO_REF],
                                      skips[number])  # fmt: skip
            self._rows[number] = row._replace(refs=operands) if operands else row
        return self._rows

    def _operands(self, number: int, firsts: list[int], skip: int) -> tuple[Operand, ...]:
        row = self._rows[number]
        lengths = operand_lengths(row.codec, row.raw_len)
        if len(firsts) != len(lengths):
            raise Corrupt(
                f"a chunk of codec {row.codec} refers to {len(firsts)} others instead of "
                f"{len(lengths)}; use another step or update cloudshift-lab"
            )
        if skip and row.codec != DERIVED:
            raise Corrupt(f"a chunk of codec {row.codec} skips {skip} bytes; use another step")
        runs = [self._run(number, *run, skip) for run in zip(firsts, lengths, strict=True)]
        return tuple(Operand(tuple(self._rows[n] for n in run), skip, length)
                     for run, length in zip(runs, lengths, strict=True))  # fmt: skip

    def _run(self, number: int, first: int, length: int, skip: int) -> range:
        """The rows from ``first`` on that hold the operand's bytes."""
        missing = skip + length
        for row in range(first, min(first + _MAX_RUN, len(self._rows))):
            if self._levels[row] >= self._levels[number]:
                break
            raw_len = self._rows[row].raw_len
            if row == first and skip and skip >= raw_len:
                raise Corrupt(f"chunk {number} skips all of chunk {first}; use another step")
            self._count(number, row)
            missing -= raw_len
            if missing <= 0:
                return range(first, row + 1)
        raise Corrupt(
            f"chunk {number} is a delta to chunk {first}, which is not there, too short or "
            "itself such a delta; use another step"
        )

    def _count(self, number: int, base: int) -> None:
        """Note what a row's decoding unfolds into: hashing or walking it costs as much."""
        self._unfolded[number] += self._unfolded[base]
        self._left -= self._unfolded[base]
        if self._left < 0:
            raise Corrupt(
                f"{len(self._rows)} chunks refer to far more others than any writer makes them; "
                "use another step"
            )


def operand_lengths(codec: int, raw_len: int) -> tuple[int, ...]:
    """Bytes of each operand that a chunk of ``raw_len`` bytes is decoded with."""
    if codec in (ADAMW_V, ADAMW_W):
        return (raw_len,) * 3
    if codec == XOR_PLANES_ZSTD:
        return (raw_len,)
    return (2 * raw_len,) if codec == DERIVED else ()


def pack_table(rows: Sequence[ChunkLocation]) -> tuple[ObjectRef, ...]:
    """The packs that rows refer to, each once, in order of first use."""
    return tuple(
        ObjectRef(pack, size) for pack, size in {r.pack: r.pack_size for r in rows}.items()
    )


def add_bases(rows: Sequence[ChunkLocation]) -> list[ChunkLocation]:
    """Rows, with the chunks they refer to added behind them, so that each operand is a run."""
    return list(_placed(rows)[0])


def _placed(
    rows: Sequence[ChunkLocation],
) -> tuple[list[ChunkLocation], dict[tuple[ChunkLocation, ...], int]]:
    """Rows with bases, and per run of operands its first row."""
    placed, firsts = list(rows), dict[tuple[ChunkLocation, ...], int]()
    where: dict[ChunkLocation, int] = {}
    for number, row in enumerate(rows):
        where.setdefault(row, number)
    number = 0
    while number < len(placed):
        for operand in placed[number].refs:
            run = operand.chunks
            first = where.get(run[0], len(placed))
            if tuple(placed[first : first + len(run)]) != run:
                first = len(placed)
                placed += run
                for i, chunk in enumerate(run):
                    where.setdefault(chunk, first + i)
            firsts[run] = first
        number += 1
    return placed, firsts


def write_index(rows: Sequence[ChunkLocation], packs: tuple[ObjectRef, ...]) -> bytes:
    """Serialise rows and what they refer to; equal rows give equal bytes.

    Args:
        rows: One per chunk of the record's boxes, in order.
        packs: All that ``add_bases(rows)`` lies in.
    """
    placed, firsts = _placed(rows)
    numbers = {pack.blake3: i for i, pack in enumerate(packs)}
    ids = np.frombuffer(b"".join(r.id for r in placed), dtype=np.uint8).reshape(-1, 32)
    values = {
        "raw_len": [r.raw_len for r in placed],
        "codec": [r.codec for r in placed],
        "width": [r.width for r in placed],
        "pack": [numbers[r.pack] for r in placed],
        "offset": [r.offset for r in placed],
        "stored_len": [r.stored_len for r in placed],
        "xxh3": [r.xxh3 for r in placed],
    }
    columns = {name: np.array(column, dtype=_COLUMNS[name]) for name, column in values.items()}
    if any(r.refs for r in rows):
        columns |= _ref_columns(placed, firsts, len(placed) - len(rows))
    return bytes(save({"id": ids, **columns}))


def _ref_columns(
    placed: Sequence[ChunkLocation], firsts: dict[tuple[ChunkLocation, ...], int], num_bases: int
) -> dict[str, npt.NDArray[Any]]:
    refs = np.full((len(placed), MAX_OPERANDS), _NO_REF, dtype=_REF_COLUMNS["refs"])
    for number, row in enumerate(placed):
        refs[number, : len(row.refs)] = [firsts[operand.chunks] for operand in row.refs]
    skip = np.array([r.refs[0].skip if r.refs else 0 for r in placed], _REF_COLUMNS["skip"])
    return {"refs": refs, "skip": skip, "bases": np.array([num_bases], dtype="<u4")}


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
    if "refs" in columns and not _refs_fit(columns):
        raise Corrupt(f"{key} has malformed references; use another step")
    return ChunkTable(columns, packs)


def _fits(columns: dict[str, npt.NDArray[Any]], name: str, dtype: np.dtype[Any]) -> bool:
    column = columns.get(name)
    if column is None or column.dtype != dtype or "raw_len" not in columns:
        return False
    rows = columns["raw_len"].shape[0] if columns["raw_len"].ndim == 1 else -1
    return column.shape == ((rows, 32) if name == "id" else (rows,))


def _refs_fit(columns: dict[str, npt.NDArray[Any]]) -> bool:
    rows = len(columns["raw_len"])
    shapes = {"refs": (rows, MAX_OPERANDS), "skip": (rows,), "bases": (1,)}
    fits = all(
        name in columns and columns[name].shape == shape and columns[name].dtype == np.dtype("<u4")
        for name, shape in shapes.items()
    )
    return fits and int(columns["bases"][0]) <= rows


def _bounded(columns: dict[str, npt.NDArray[Any]], packs: tuple[ObjectRef, ...]) -> bool:
    if not packs or int(columns["pack"].max()) >= len(packs):
        return False
    sizes = np.array([pack.size for pack in packs], dtype=np.uint64)[columns["pack"]]
    offset, stored = columns["offset"], columns["stored_len"].astype(np.uint64)
    inside = (offset <= sizes) & (stored <= sizes - np.minimum(offset, sizes))
    small = (columns["raw_len"] <= MAX_CHUNK_BYTES) & (columns["stored_len"] <= columns["raw_len"])
    return bool((inside & small & (columns["stored_len"] > 0)).all())
