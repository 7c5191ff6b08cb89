"""A rank stores its staged share of a step: chunks, packs, index, record, in that order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from cloudshift_lab.checkpoint.boxes import (
    TensorBox,
    TensorSpec,
    check_box,
    cut,
    grid_cell,
    whole,
)
from cloudshift_lab.checkpoint.codecs import Encoded, encode
from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES, ElementType, element_type
from cloudshift_lab.checkpoint.index import ChunkLocation, pack_table, write_index
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.layout import (
    PACK_BYTES,
    BoxEntry,
    ObjectRef,
    RankRecord,
    StepDir,
    blake3_hex,
    pack_key,
    step_dir,
)
from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.store import Store

Buffer = memoryview | npt.NDArray[np.uint8]
_WINDOW = 64


@dataclass(frozen=True)
class Staged:
    """One rank's share of the state after one step, still in memory.

    Args:
        step: Optimizer step.
        rank: Who staged it, 0 <= rank < world_size.
        world_size: Ranks of the job.
        boxes: What the buffers hold.
        buffers: Per box its elements in C order, as bytes.
        leaves: Everything of this rank that is not a tensor: plain Python values.
        catalog: Every tensor of the whole state, also those of other ranks; empty: unknown, then
            a step in which a rank is missing counts as partial.
    """

    step: int
    rank: int
    world_size: int
    boxes: tuple[TensorBox, ...]
    buffers: tuple[Buffer, ...]
    leaves: object = None
    catalog: tuple[TensorSpec, ...] = field(default=())


class WrittenRank(msgspec.Struct, frozen=True):
    """What ``write_rank`` stored; small enough to send to whoever seals the step.

    ``raw_bytes`` is the staged share, ``stored_bytes`` the blobs it refers to (each once),
    ``new_bytes`` what had to be uploaded as packs.
    """

    rank: int
    record_key: str
    digest: str
    size: int
    raw_bytes: int
    stored_bytes: int
    new_bytes: int


def stage_arrays(
    arrays: Mapping[str, npt.NDArray[np.generic]], *, step: int, rank: int = 0,
    world_size: int = 1, leaves: object = None,
) -> Staged:  # fmt: skip
    """Stage whole numpy arrays, for jobs without torch and for tests.

    Raises:
        Unsupported: An array's dtype is not in the format.
    """
    boxes, buffers = [], []
    for name, array in arrays.items():
        kind = element_type(array.dtype.name)
        data = np.ascontiguousarray(array, dtype=kind.numpy).reshape(array.shape)
        region = whole(array.shape)
        boxes.append(TensorBox(name, array.dtype.name, array.shape, region.offset, region.shape))
        buffers.append(data.reshape(-1).view(np.uint8))
    catalog = tuple(TensorSpec(b.name, b.dtype, b.global_shape) for b in boxes)
    return Staged(step, rank, world_size, tuple(boxes), tuple(buffers), leaves, catalog)


def write_rank(
    store: Store, run_id: str, staged: Staged, *, generation: int,
    known: KnownChunks | None = None, concurrency: int = 4, threads: int = 1,
) -> WrittenRank:  # fmt: skip
    """Store one rank's share: new packs first, then the index, then the record.

    Safe to repeat after any failure: equal input writes equal bytes to equal keys. Makes no step
    exist; that takes ``seal`` and a commit in the run log.

    Args:
        store: Where to.
        run_id: Whose step it is.
        staged: The share.
        generation: The writer's fencing token.
        known: Chunks of committed checkpoints of this store, which are not written again.
        concurrency: Packs (of 16 MiB, held in memory) uploaded at a time.
        threads: Threads that hash and compress; the store is only called from this one.

    Returns:
        What ``seal`` needs to know.

    Raises:
        UsageError: The share does not fit together, or a leaf has a type that JSON cannot hold.
        Unsupported: A dtype that is not in the format.
        Unavailable, Denied, Exhausted: As the store reported; call again to go on.
    """
    place = step_dir(run_id, staged.step, generation)
    entries = _check(staged)
    leaves = encode_leaves(staged.leaves)
    if known:
        known = known.worth_reusing(_chunk_id(c) for c in _raw_chunks(staged, entries))
    packer = _Packer(store, known or KnownChunks(), concurrency)
    for chunk in _encoded_chunks(staged, entries, packer, threads):
        packer.add(chunk)
    rows = packer.finish()
    return _write_record(store, place, staged, entries, rows=rows, leaves=leaves,
                         new_bytes=packer.new_bytes)  # fmt: skip


def _check(staged: Staged) -> list[BoxEntry]:
    if not 0 <= staged.rank < staged.world_size or len(staged.boxes) != len(staged.buffers):
        raise UsageError(
            f"rank {staged.rank} of {staged.world_size} staged {len(staged.boxes)} boxes and "
            f"{len(staged.buffers)} buffers; pass one buffer per box and 0 <= rank < world size"
        )
    entries = []
    for box, buffer in zip(staged.boxes, staged.buffers, strict=True):
        check_box(box)
        if np.asarray(buffer).nbytes != box.num_bytes:
            raise UsageError(
                f"'{box.name}' needs {box.num_bytes} bytes for {box.shape} {box.dtype}, its buffer "
                f"has {np.asarray(buffer).nbytes}; pass the box's elements in C order"
            )
        cell = grid_cell(box.global_shape, element_type(box.dtype).itemsize)
        entries.append(
            BoxEntry(box.name, box.dtype, box.global_shape, box.offset, box.shape, cell=cell)
        )
    return entries


class _RawChunk(NamedTuple):
    raw: npt.NDArray[np.uint8]
    kind: ElementType


class _Chunk(NamedTuple):
    """``encoded`` is None when the chunk was already there before it was compressed."""

    id: bytes
    raw_len: int
    encoded: Encoded | None


def _raw_chunks(staged: Staged, entries: list[BoxEntry]) -> Iterator[_RawChunk]:
    for entry, buffer in zip(entries, staged.buffers, strict=True):
        kind = ELEMENT_TYPES[entry.dtype]
        flat = np.ascontiguousarray(np.asarray(buffer)).reshape(-1).view(np.uint8)
        elements = flat.reshape(*entry.shape, kind.itemsize)
        for region in cut(entry.region, entry.cell).regions():
            part = elements[region.slices_in(entry.region)]
            yield _RawChunk(np.ascontiguousarray(part).reshape(-1), kind)


def _chunk_id(chunk: _RawChunk) -> bytes:
    return blake3(chunk.raw.data).digest()


def _encoded_chunks(
    staged: Staged, entries: list[BoxEntry], packer: _Packer, threads: int
) -> Iterator[_Chunk]:
    def work(chunk: _RawChunk) -> _Chunk:
        chunk_id = _chunk_id(chunk)
        have = packer.find(chunk_id) is not None
        encoded = None if have else encode(chunk.raw, chunk.kind)
        return _Chunk(chunk_id, len(chunk.raw), encoded)

    source = _raw_chunks(staged, entries)
    if threads <= 1:
        yield from map(work, source)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        while window := list(islice(source, _WINDOW)):
            yield from pool.map(work, window)


class _Packer:
    """Lays new blobs back to back and uploads a pack whenever enough have gathered.

    The arena is touched once and used for every pack: fresh memory costs more than compression.
    """

    def __init__(self, store: Store, known: KnownChunks, concurrency: int) -> None:
        self._store = store
        self._known = known
        self._concurrency = max(1, concurrency)
        self._arena = bytearray()
        self._open_rows: list[ChunkLocation] = []
        self._open_bytes = 0
        self._closed: dict[str, bytes] = {}
        self._found: dict[bytes, ChunkLocation] = {}
        self._order: list[bytes] = []
        self.new_bytes = 0

    def find(self, chunk_id: bytes) -> ChunkLocation | None:
        return self._found.get(chunk_id) or self._known.find(chunk_id)

    def add(self, chunk: _Chunk) -> None:
        self._order.append(chunk.id)
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
        self._open_rows.append(row)
        self._arena[self._open_bytes : self._open_bytes + len(blob)] = blob
        self._open_bytes += len(blob)
        if self._open_bytes >= PACK_BYTES:
            self._close()

    def finish(self) -> list[ChunkLocation]:
        """Upload what is left; one row per added chunk, in order."""
        self._close()
        self._upload()
        return [self._found[chunk_id] for chunk_id in self._order]

    def _close(self) -> None:
        if not self._open_rows:
            return
        data = bytes(memoryview(self._arena)[: self._open_bytes])
        digest = blake3_hex(data)
        for row in self._open_rows:
            self._found[row.id] = row._replace(pack=digest, pack_size=len(data))
        self._closed[pack_key(digest)] = data
        self.new_bytes += len(data)
        self._open_rows, self._open_bytes = [], 0
        if len(self._closed) >= self._concurrency:
            self._upload()

    def _upload(self) -> None:
        if self._closed:
            self._store.put_many(self._closed, concurrency=self._concurrency)
        self._closed = {}


def _write_record(
    store: Store, place: StepDir, staged: Staged, entries: list[BoxEntry], *,
    rows: list[ChunkLocation], leaves: bytes, new_bytes: int,
) -> WrittenRank:  # fmt: skip
    packs = pack_table(rows)
    index = write_index(rows, packs)
    index_ref = ObjectRef(blake3_hex(index), len(index))
    store.put(place.index_key(staged.rank, staged.world_size, index_ref.blake3), index)
    record = RankRecord(
        run_id=place.run_id, step=place.step, generation=place.generation, rank=staged.rank,
        world_size=staged.world_size, boxes=tuple(entries), catalog=staged.catalog, packs=packs,
        index=index_ref, raw_bytes=sum(entry.num_bytes for entry in entries),
        stored_bytes=_stored_bytes(rows), leaves=msgspec.Raw(leaves),
    )  # fmt: skip
    data = to_json(record)
    digest = blake3_hex(data)
    key = place.record_key(staged.rank, staged.world_size, digest)
    store.put(key, data)
    return WrittenRank(
        staged.rank, key, digest, len(data), record.raw_bytes, record.stored_bytes, new_bytes
    )


def _stored_bytes(rows: Iterable[ChunkLocation]) -> int:
    return sum({row.id: row.stored_len for row in rows}.values())
