"""One rank's staged share of a step, and how the grid cuts it into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.boxes import (
    Ints,
    Region,
    TensorBox,
    TensorSpec,
    check_box,
    cut,
    grid_cell,
    whole,
)
from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES, ElementType, element_type
from cloudshift_lab.checkpoint.layout import BoxEntry
from cloudshift_lab.core.errors import UsageError

Buffer = memoryview | npt.NDArray[np.uint8]


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


class ShareBox(NamedTuple):
    """A staged box and its chunks: row ``first_row + n`` is ``flat[starts[n]:starts[n + 1]]``.

    The grid cuts a box across whole rows only, so a chunk's elements lie side by side in it.
    """

    entry: BoxEntry
    kind: ElementType
    flat: npt.NDArray[np.uint8]
    starts: tuple[int, ...]
    first_row: int

    @property
    def num_chunks(self) -> int:
        return len(self.starts) - 1

    def chunk(self, number: int) -> npt.NDArray[np.uint8]:
        """The raw bytes of a chunk, not copied."""
        return self.flat[self.starts[number] : self.starts[number + 1]]

    def regions(self) -> Iterator[Region]:
        """Where each chunk lies in the global tensor."""
        return cut(self.entry.region, self.entry.cell).regions()

    def rows_of(self, start: int, stop: int) -> tuple[range, int]:
        """Rows that hold the bytes ``[start, stop)`` of the box, and where in the first they begin.

        ``stop`` must be larger than ``start``.
        """
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        rows = range(self.first_row + first, self.first_row + last)
        return rows, start - self.starts[first]


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


def cut_share(staged: Staged) -> list[ShareBox]:
    """Cut every box of a share at the grid of its tensor.

    Raises:
        UsageError: Boxes and buffers do not fit together.
        Unsupported: A dtype that is not in the format.
    """
    if not 0 <= staged.rank < staged.world_size or len(staged.boxes) != len(staged.buffers):
        raise UsageError(
            f"rank {staged.rank} of {staged.world_size} staged {len(staged.boxes)} boxes and "
            f"{len(staged.buffers)} buffers; pass one buffer per box and 0 <= rank < world size"
        )
    boxes: list[ShareBox] = []
    row = 0
    for box, buffer in zip(staged.boxes, staged.buffers, strict=True):
        boxes.append(_cut_box(box, buffer, row))
        row += boxes[-1].num_chunks
    return boxes


def num_rows(boxes: Sequence[ShareBox]) -> int:
    """Chunks of the whole share."""
    return boxes[-1].first_row + boxes[-1].num_chunks if boxes else 0


def _cut_box(box: TensorBox, buffer: Buffer, first_row: int) -> ShareBox:
    check_box(box)
    array = np.asarray(buffer)
    if array.nbytes != box.num_bytes:
        raise UsageError(
            f"'{box.name}' needs {box.num_bytes} bytes for {box.shape} {box.dtype}, its buffer "
            f"has {array.nbytes}; pass the box's elements in C order"
        )
    kind = ELEMENT_TYPES[box.dtype]
    cell = grid_cell(box.global_shape, kind.itemsize)
    entry = BoxEntry(box.name, box.dtype, box.global_shape, box.offset, box.shape, cell=cell)
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    starts = _starts(box.region, cell, kind.itemsize)
    return ShareBox(entry, kind, flat, starts, first_row)


@lru_cache(maxsize=4096)
def _starts(region: Region, cell: Ints, itemsize: int) -> tuple[int, ...]:
    """Where the chunks of a box begin in it, and its end; the same at every save."""
    return (0, *np.cumsum(cut(region, cell).num_elements() * itemsize).tolist())
