"""Gathers a save's new blobs into packs and uploads these; keeps where every chunk lies."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from cloudshift_lab.checkpoint.boxes import MAX_GRID_BYTES
from cloudshift_lab.checkpoint.codecs import HEAD_BYTES, Encoded
from cloudshift_lab.checkpoint.index import ChunkLocation, Operand
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.layout import PACK_BYTES, pack_key
from cloudshift_lab.storage.store import Blob, Store

_PADDING = 0
_MAX_PADDING = 4096
_PAGE_BYTES = 4096
_ARENA_BYTES = PACK_BYTES + MAX_GRID_BYTES + HEAD_BYTES + _MAX_PADDING
_local = threading.local()


class OwnRun(NamedTuple):
    """An operand in the same save: bytes that begin ``skip`` bytes into the first of ``rows``."""

    rows: range
    skip: int
    length: int


class PackedChunk(NamedTuple):
    """A chunk on its way into a pack; ``encoded`` is None when it was already there before."""

    row: int
    id: bytes
    raw_len: int
    encoded: Encoded | None
    refs: tuple[OwnRun | Operand, ...] = ()


class Packer:
    """Lays new blobs back to back and uploads packs whenever enough have gathered.

    Args:
        store: Where to; only called from the thread that adds.
        known: Chunks that are stored already.
        dead_packs: Hashes under which nothing may be written any more.
        concurrency: Packs uploaded at a time; so many are held in memory.
    """

    def __init__(
        self, store: Store, known: KnownChunks, dead_packs: frozenset[str], concurrency: int
    ) -> None:
        self._store = store
        self._known = known
        self._dead_packs = dead_packs
        self._concurrency = max(1, concurrency)
        self._open: list[ChunkLocation] = []
        self._arenas = _arenas(self._concurrency)
        self._open_bytes = 0
        self._hash = blake3()
        self._closed: dict[str, Blob] = {}
        self._found: dict[bytes, ChunkLocation] = {}
        self._refs: dict[bytes, tuple[OwnRun | Operand, ...]] = {}
        self._ids: dict[int, bytes] = {}
        self.new_bytes = 0

    def find(self, chunk_id: bytes) -> ChunkLocation | None:
        """Where a chunk lies or will lie; a pack that is still open has no name yet."""
        return self._found.get(chunk_id) or self._known.find(chunk_id)

    def at_row(self, row: int) -> ChunkLocation:
        """What ``find`` says of a row that was added."""
        return self._found[self._ids[row]]

    @property
    def room(self) -> memoryview:
        """Where the next blob will lie, long enough for any: one made there is not copied."""
        return self._arenas[len(self._closed)][self._open_bytes :]

    def add(self, chunk: PackedChunk) -> None:
        """Take a chunk in; chunks that others refer to must come before these."""
        self._ids[chunk.row] = chunk.id
        if chunk.id in self._found:
            return
        if (there := self._known.find(chunk.id)) is not None:
            self._found[chunk.id] = there
            return
        assert chunk.encoded is not None, "a chunk that was found must stay found"
        codec, width, blob = chunk.encoded
        row = ChunkLocation(
            chunk.id, chunk.raw_len, codec, width, "", 0, self._open_bytes, len(blob),
            xxh3_64_intdigest(blob),
        )  # fmt: skip
        self._found[chunk.id] = row
        self._refs[chunk.id] = chunk.refs
        self._open.append(row)
        room = self.room
        if not (isinstance(blob, memoryview) and blob.obj is room.obj):
            room[: len(blob)] = blob
        self._hash.update(room[: len(blob)])  # while the processor still has it at hand
        self._open_bytes += len(blob)
        if self._open_bytes >= PACK_BYTES:
            self._close()

    def finish(self) -> list[ChunkLocation]:
        """Upload what is left; one location per row."""
        self._close()
        self._upload()
        for chunk_id, refs in self._refs.items():
            if refs:
                operands = tuple(self._resolved(ref) for ref in refs)
                self._found[chunk_id] = self._found[chunk_id]._replace(refs=operands)
        return [self.at_row(row) for row in range(len(self._ids))]

    def _resolved(self, ref: OwnRun | Operand) -> Operand:
        if isinstance(ref, Operand):
            return ref
        return Operand(tuple(self.at_row(row) for row in ref.rows), ref.skip, ref.length)

    def _close(self) -> None:
        if not self._open:
            return
        digest, data = self._named()
        for row in self._open:
            self._found[row.id] = row._replace(pack=digest, pack_size=len(data))
        self._closed[pack_key(digest)] = data
        self.new_bytes += len(data)
        self._open, self._open_bytes, self._hash = [], 0, blake3()
        if len(self._closed) >= self._concurrency:
            self._upload()

    def _named(self) -> tuple[str, memoryview]:
        """The open pack's hash and bytes, with padding if that hash is about to be deleted."""
        arena, num_bytes = self._arenas[len(self._closed)], self._open_bytes
        while (digest := self._hash.hexdigest()) in self._dead_packs:
            arena[num_bytes] = _PADDING
            self._hash.update(arena[num_bytes : num_bytes + 1])
            num_bytes += 1
        return digest, arena[:num_bytes]

    def _upload(self) -> None:
        if self._closed:
            self._store.put_many(self._closed, concurrency=self._concurrency)
        self._closed = {}


def _arenas(count: int) -> list[memoryview]:
    """Memory of this thread in which its packs grow: fresh pages cost more than compression."""
    found: list[memoryview] = _local.__dict__.setdefault("arenas", [])
    while len(found) < count:
        found.append(_aligned(_ARENA_BYTES))
    return found


def _aligned(num_bytes: int) -> memoryview:
    """Memory that begins with a page, from which a disk can read without a copy."""
    space = np.empty(num_bytes + _PAGE_BYTES, dtype=np.uint8)
    start = -space.ctypes.data % _PAGE_BYTES
    return space[start : start + num_bytes].data
