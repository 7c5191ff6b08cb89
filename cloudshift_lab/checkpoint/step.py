"""One stored step, opened: names, tensors, boxes for any world size, leaves, objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.boxes import (
    Cuts,
    Ints,
    Region,
    TensorBox,
    TensorSpec,
    check_box,
    covers,
    cut,
    intersect,
    whole,
)
from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES
from cloudshift_lab.checkpoint.fetch import CONCURRENCY, Piece, fetch_pieces
from cloudshift_lab.checkpoint.index import ChunkLocation, ChunkTable
from cloudshift_lab.checkpoint.layout import (
    Coverage,
    Manifest,
    ObjectRef,
    RankRecord,
    StepDir,
    pack_key,
)
from cloudshift_lab.checkpoint.leaves import decode_leaves
from cloudshift_lab.checkpoint.seal import catalog
from cloudshift_lab.core.errors import CloudshiftError, Corrupt, NotFound, UsageError
from cloudshift_lab.storage.store import Store

Array = npt.NDArray[np.generic]


class BoxRequest(NamedTuple):
    """A part of a global tensor that a reader wants; offset and shape in elements per axis."""

    name: str
    offset: Ints
    shape: Ints


class _StoredBox(NamedTuple):
    """A box with its rows in its rank's chunk table."""

    box: TensorBox
    cuts: Cuts
    table: ChunkTable
    first_row: int

    def pieces(self, wanted: Region) -> Iterator[tuple[ChunkLocation, Region]]:
        for number, region in self.cuts.overlapping(wanted):
            yield self.table.row(self.first_row + number), region


class Checkpoint:
    """One step, opened: manifest, records and chunk tables are read and their hashes checked.

    Invariant: no method returns an element whose chunk did not match its id.
    """

    def __init__(
        self, store: Store, place: StepDir, manifest: Manifest, manifest_ref: ObjectRef,
        parts: Sequence[tuple[RankRecord, ChunkTable]],
    ) -> None:  # fmt: skip
        self._store = store
        self._place = place
        self.manifest = manifest
        self._manifest_ref = manifest_ref
        self._records = {record.rank: record for record, _ in parts}
        self._tables = [table for _, table in parts]
        self._specs = catalog(record for record, _ in parts)
        self._boxes: dict[str, list[_StoredBox]] = {name: [] for name in self._specs}
        for record, table in parts:
            for stored in _stored_boxes(record, table):
                self._boxes[stored.box.name].append(stored)

    @property
    def store(self) -> Store:
        return self._store

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def world_size(self) -> int:
        return self.manifest.world_size

    @property
    def coverage(self) -> Coverage:
        return self.manifest.coverage

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks whose records the step has."""
        return tuple(self._records)

    def names(self) -> tuple[str, ...]:
        """Every tensor of the state, sorted."""
        return tuple(sorted(self._specs))

    def spec(self, name: str) -> TensorSpec:
        """Dtype and global shape of a tensor.

        Raises:
            NotFound: No such tensor; names one that is close.
        """
        found = self._specs.get(name)
        if found is None:
            raise NotFound(
                f"step {self.step} has no tensor '{name}'; its {len(self._specs)} tensors are "
                f"called like '{next(iter(self._specs), 'nothing')}'"
            )
        return found

    def tensor(self, name: str, *, allow_partial: bool = False) -> Array:
        """A whole global tensor; bfloat16 as uint16, float8 as uint8.

        Raises:
            UsageError: The step is partial, and ``allow_partial`` was not said.
            NotFound: No such tensor, or elements of it are nowhere (partial step).
            Corrupt: Stored bytes differ from their hash.
        """
        region = whole(self.spec(name).global_shape)
        return self.box(name, region.offset, region.shape, allow_partial=allow_partial)

    def box(
        self, name: str, offset: Ints, shape: Ints, *, allow_partial: bool = False
    ) -> Array:  # fmt: skip
        """Any part of a global tensor. Raises as ``tensor`` does, and UsageError if outside it."""
        return self.read_many([BoxRequest(name, offset, shape)], allow_partial=allow_partial)[0]

    def read_many(
        self, requests: Sequence[BoxRequest], concurrency: int = CONCURRENCY, *,
        out: Sequence[npt.NDArray[np.uint8]] | None = None, threads: int | None = None,
        allow_partial: bool = False,
    ) -> list[Array]:  # fmt: skip
        """Read many boxes with one plan: each blob once, neighbouring ranges merged.

        Args:
            requests: What is wanted.
            concurrency: Range requests at a time, of 1 to 8 MiB: what is held in memory besides
                the result.
            out: Per request a writable C-contiguous byte buffer to fill; None: new memory.
            threads: Threads that decode and hash while more arrives; None: as the machine has.
            allow_partial: Read from a step with holes too; what is asked for must be there whole.

        Returns:
            One array per request, in order.

        Raises:
            UsageError: A box outside its tensor, a buffer of the wrong size, or a partial step.
            NotFound: No such tensor, or elements of it are nowhere (partial step).
            Corrupt: Stored bytes differ from their hash, also when read again.
        """
        if self.coverage == "partial" and not allow_partial:
            raise UsageError(
                f"step {self.step} is partial: ranks are missing; use another step, or name the "
                "tensors you need with allow_partial=True",
                step=self.step,
            )
        wanted = [self._wanted(request) for request in requests]
        # Coverage first: a hostile manifest may claim a tensor that no memory holds.
        sources = [self._sources(box) for box in wanted]
        targets = [_target(box, None if out is None else out[i]) for i, box in enumerate(wanted)]
        pieces = [
            piece
            for box, source, target in zip(wanted, sources, targets, strict=True)
            for piece in _pieces(box, source, target)
        ]
        fetch_pieces(self._store, pieces, concurrency=concurrency, threads=threads)
        return [
            target.reshape(-1).view(ELEMENT_TYPES[box.dtype].numpy).reshape(box.shape)
            for box, target in zip(wanted, targets, strict=True)
        ]

    def _wanted(self, request: BoxRequest) -> TensorBox:
        spec = self.spec(request.name)
        box = TensorBox(
            spec.name, spec.dtype, spec.global_shape, tuple(request.offset), tuple(request.shape)
        )
        check_box(box)
        return box

    def _sources(self, box: TensorBox) -> list[tuple[_StoredBox, Region]]:
        """Stored boxes that together hold ``box``, and which part of it each gives."""
        region = box.region
        chosen: list[tuple[_StoredBox, Region]] = []
        for stored in self._boxes[box.name]:
            part = intersect(stored.box.region, region)
            if part is not None and not any(intersect(part, c) == part for _, c in chosen):
                chosen.append((stored, part))
        if not covers([part for _, part in chosen], region):
            raise NotFound(
                f"step {self.step} does not hold all of '{box.name}' {box.offset}+{box.shape} "
                f"(it is {self.coverage}); use another step",
                step=self.step,
            )
        return chosen

    def leaves(self, rank: int) -> object:
        """Everything of a rank that is not a tensor.

        Raises:
            NotFound: The step has no record of that rank.
            Corrupt: The values are malformed.
        """
        record = self._records.get(rank)
        if record is None:
            raise NotFound(
                f"step {self.step} has no record of rank {rank}; it has {list(self._records)}"
            )
        return decode_leaves(record.leaves)

    def boxes_of(self, rank: int) -> tuple[TensorBox, ...]:
        """What a rank has stored; nothing when the step has no record of it."""
        record = self._records.get(rank)
        return () if record is None else record.boxes

    def locations(self) -> Iterator[ChunkLocation]:
        """Every row of every chunk table."""
        for table in self._tables:
            yield from table.rows()

    def chunks_of(self, name: str) -> Iterator[tuple[Region, ChunkLocation]]:
        """Every chunk of a tensor with its place in the global tensor; replicas come repeatedly.

        Raises:
            NotFound: No such tensor.
        """
        self.spec(name)
        for stored in self._boxes[name]:
            for number, region in enumerate(stored.cuts.regions()):
                yield region, stored.table.row(stored.first_row + number)

    def chunk_ids(self) -> frozenset[bytes]:
        """The content of the step, as a set."""
        return frozenset(location.id for location in self.locations())

    def packs(self) -> dict[str, tuple[str, int]]:
        """Per pack key its blake3 and size in bytes."""
        return {pack_key(p.blake3): (p.blake3, p.size) for p in self.manifest.packs}

    def record_keys(self) -> dict[str, str]:
        """Keys of indexes and rank records with their blake3, indexes first (write order)."""
        world = self.world_size
        indexes = {
            self._place.index_key(r.rank, world, r.index.blake3): r.index.blake3
            for r in self._records.values()
        }
        records = {
            self._place.record_key(r.rank, world, r.blake3): r.blake3 for r in self.manifest.ranks
        }
        return {**indexes, **records}

    @property
    def manifest_key(self) -> str:
        return self._place.manifest_key(self.manifest_digest)

    @property
    def manifest_digest(self) -> str:
        return self._manifest_ref.blake3

    def object_sizes(self) -> dict[str, int]:
        """Every object of the step with its size in bytes, in write order: manifest last."""
        sizes = [size for _, size in self.packs().values()]
        sizes += [record.index.size for record in self._records.values()]
        sizes += [ref.size for ref in self.manifest.ranks] + [self._manifest_ref.size]
        return dict(zip(self.object_keys(), sizes, strict=True))

    def object_keys(self) -> dict[str, str]:
        """Every object of the step with its blake3, in write order: manifest last."""
        packs = {key: digest for key, (digest, _) in self.packs().items()}
        return {**packs, **self.record_keys(), self.manifest_key: self.manifest_digest}


def _pieces(
    box: TensorBox, sources: Iterable[tuple[_StoredBox, Region]], target: npt.NDArray[np.uint8]
) -> Iterator[Piece]:
    """Per chunk what to take of it, and the part of the destination to fill with that."""
    for stored, part in sources:
        for location, region in stored.pieces(part):
            common = intersect(region, part)
            assert common is not None, "chunks were chosen because they overlap"
            shape = (*region.shape, target.shape[-1])
            view = target[common.slices_in(box.region)]
            yield Piece(location, shape, common.slices_in(region), view)


def _stored_boxes(record: RankRecord, table: ChunkTable) -> Iterator[_StoredBox]:
    """Give each box its rows, and check the geometry against the table.

    Raises:
        Corrupt: Boxes, cells and chunk table do not fit together.
    """
    row = 0
    for entry in record.boxes:
        try:
            check_box(entry)
        except CloudshiftError as error:
            raise Corrupt(f"rank {record.rank}'s record: {error.message}") from error
        itemsize = ELEMENT_TYPES[entry.dtype].itemsize
        if len(entry.cell) != len(entry.shape) or any(n <= 0 for n in entry.cell):
            raise Corrupt(
                f"'{entry.name}' has an impossible grid cell {entry.cell}; use another step"
            )
        num_chunks = _count_chunks(entry.region, entry.cell)
        if row + num_chunks > len(table):
            break
        cuts = cut(entry.region, entry.cell)
        lens = [region.num_elements * itemsize for region in cuts.regions()]
        if not np.array_equal(table.raw_lens[row : row + num_chunks], lens):
            raise Corrupt(f"'{entry.name}' has chunks of the wrong length; use another step")
        yield _StoredBox(entry, cuts, table, row)
        row += num_chunks
    else:
        if row + table.num_bases == len(table):
            return
    raise Corrupt(
        f"rank {record.rank}'s boxes and its {len(table)} chunks do not fit together; "
        "use another step"
    )


def _count_chunks(region: Region, cell: Ints) -> int:
    """Number of chunks without building them: a hostile box may claim 2**60."""
    return math.prod(
        (start + length - 1) // step - start // step + 1 if length else 0
        for start, length, step in zip(region.offset, region.shape, cell, strict=True)
    )


def _target(box: TensorBox, buffer: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """The bytes to fill, shaped as the box with one more axis for an element's bytes."""
    itemsize = ELEMENT_TYPES[box.dtype].itemsize
    if buffer is None:
        return np.empty((*box.shape, itemsize), dtype=np.uint8)
    if buffer.nbytes != box.num_bytes or not buffer.flags.c_contiguous:
        raise UsageError(
            f"'{box.name}' {box.shape} needs a contiguous buffer of {box.num_bytes} bytes, "
            f"got {buffer.nbytes}; pass a uint8 view of the destination"
        )
    return buffer.reshape(-1).view(np.uint8).reshape(*box.shape, itemsize)
