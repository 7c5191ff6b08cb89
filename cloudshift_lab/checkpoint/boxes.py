"""Boxes of global tensors, the chunk grid that cuts them, and whether boxes cover a tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.dtypes import element_type
from cloudshift_lab.core.errors import Corrupt, UsageError

Ints = tuple[int, ...]
MIN_CHUNK_BYTES = 256 * 1024
MAX_GRID_BYTES = 1024 * 1024
MAX_AXES = 32
_MAX_COVER_CELLS = 50_000_000


class TensorBox(msgspec.Struct, frozen=True):
    """An axis-aligned part of a global tensor; ``offset`` and ``shape`` in elements per axis."""

    name: str
    dtype: str
    global_shape: Ints
    offset: Ints
    shape: Ints

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * element_type(self.dtype).itemsize

    @property
    def region(self) -> Region:
        return Region(self.offset, self.shape)


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, dtype and global shape of one tensor of the state."""

    name: str
    dtype: str
    global_shape: Ints


class Region(NamedTuple):
    """A box without its tensor's name."""

    offset: Ints
    shape: Ints

    @property
    def stop(self) -> Ints:
        return tuple(o + s for o, s in zip(self.offset, self.shape, strict=True))

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def slices_in(self, outer: Region) -> tuple[slice, ...]:
        """Where this region lies inside ``outer``, as an index into outer's array."""
        return tuple(
            slice(o - base, o - base + s)
            for o, s, base in zip(self.offset, self.shape, outer.offset, strict=True)
        )


def whole(global_shape: Ints) -> Region:
    """The region of a complete tensor."""
    return Region((0,) * len(global_shape), tuple(global_shape))


def intersect(a: Region, b: Region) -> Region | None:
    """The common part of two regions; None when it has no element."""
    start = tuple(map(max, a.offset, b.offset))
    shape = tuple(min(x, y) - s for x, y, s in zip(a.stop, b.stop, start, strict=True))
    return None if any(n <= 0 for n in shape) else Region(start, shape)


def check_box(box: TensorBox) -> None:
    """Refuse a box that does not lie inside its tensor.

    Raises:
        UsageError: Wrong number of axes, or out of range.
        Unsupported: Unknown dtype.
    """
    element_type(box.dtype)
    axes = len(box.global_shape)
    fits = (
        axes <= MAX_AXES
        and len(box.offset) == axes == len(box.shape)
        and all(
            min(o, s) >= 0 and o + s <= g < 2**63
            for o, s, g in zip(box.offset, box.shape, box.global_shape, strict=True)
        )
    )
    if not fits:
        raise UsageError(
            f"box {box.offset}+{box.shape} does not lie inside '{box.name}' of shape "
            f"{box.global_shape}; pass offsets and shapes in elements of the global tensor"
        )


def grid_cell(global_shape: Ints, itemsize: int) -> Ints:
    """Shape of a grid cell: whole global rows of about ``tensor bytes / 256``.

    Depends on the tensor only, so that a change of world size re-uses its chunks.

    Args:
        global_shape: Shape of the unsharded tensor.
        itemsize: Bytes per element.

    Returns:
        One length per axis, each >= 1; at most 1 MiB of elements together.
    """
    dims = tuple(max(1, n) for n in global_shape)
    target = min(max(math.prod(dims) * itemsize // 256, MIN_CHUNK_BYTES), MAX_GRID_BYTES)
    for axis, length in enumerate(dims):
        row_bytes = itemsize * math.prod(dims[axis + 1 :])
        if row_bytes <= target:
            rows = min(length, max(1, target // row_bytes))
            return (1,) * axis + (rows,) + dims[axis + 1 :]
    return ()


class Cuts(NamedTuple):
    """A box cut by its grid: per axis the ascending borders, first and last included."""

    borders: tuple[Ints, ...]
    counts: Ints

    @property
    def num_chunks(self) -> int:
        return math.prod(self.counts)

    def num_elements(self) -> npt.NDArray[np.int64]:
        """Elements of each chunk in C order."""
        found = np.ones(1, dtype=np.int64)
        for borders in self.borders:
            found = np.multiply.outer(found, np.diff(np.asarray(borders, dtype=np.int64)))
        return found.reshape(-1)

    def regions(self) -> Iterator[Region]:
        """The chunks' regions in C order."""
        for numbers in itertools.product(*(range(n) for n in self.counts)):
            yield self.region(numbers)

    def region(self, numbers: Ints) -> Region:
        """The region of the chunk with these numbers along the axes."""
        pairs = [(b[i], b[i + 1]) for b, i in zip(self.borders, numbers, strict=True)]
        return Region(tuple(a for a, _ in pairs), tuple(z - a for a, z in pairs))

    def overlapping(self, region: Region) -> Iterator[tuple[int, Region]]:
        """Number in C order and region of every chunk that shares an element with ``region``."""
        spans = [
            _span(borders, start, stop)
            for borders, start, stop in zip(self.borders, region.offset, region.stop, strict=True)
        ]
        for numbers in itertools.product(*spans):
            number = 0
            for index, count in zip(numbers, self.counts, strict=True):
                number = number * count + index
            yield number, self.region(numbers)


def _span(borders: Ints, start: int, stop: int) -> range:
    column = np.asarray(borders, dtype=np.int64)
    first = int(np.searchsorted(column, start, side="right")) - 1
    last = int(np.searchsorted(column, stop, side="left"))
    return range(max(first, 0), min(last, len(borders) - 1))


def cut(region: Region, cell: Ints) -> Cuts:
    """Cut a region at the grid lines that pass through it; an empty one has no chunks."""
    if region.num_elements == 0:
        return Cuts(((0,),) * len(cell), (0,) * len(cell))
    borders = tuple(
        _borders(start, start + length, step)
        for start, length, step in zip(region.offset, region.shape, cell, strict=True)
    )
    return Cuts(borders, tuple(len(b) - 1 for b in borders))


def _borders(start: int, stop: int, step: int) -> Ints:
    first_line = (start // step + 1) * step
    return (start, *range(first_line, stop, step), stop)


def covers(regions: Iterable[Region], target: Region) -> bool:
    """Whether the regions together hold every element of ``target``.

    Raises:
        Corrupt: The regions are so many and so crossed that no real save wrote them.
    """
    if target.num_elements == 0:
        return True
    parts = {part for r in regions if (part := intersect(r, target)) is not None}
    if target in parts:
        return True
    lines = [
        sorted({p.offset[a] for p in parts} | {p.stop[a] for p in parts})
        for a in range(len(target.shape))
    ]
    if math.prod(max(len(line), 1) for line in lines) > _MAX_COVER_CELLS:
        raise Corrupt(
            "the boxes of one tensor cross too often; this manifest was not written by us"
        )
    reaches = all(
        line and line[0] == start and line[-1] == stop
        for line, start, stop in zip(lines, target.offset, target.stop, strict=True)
    )
    return reaches and _all_marked(parts, lines)


def _all_marked(parts: Iterable[Region], lines: Sequence[list[int]]) -> bool:
    numbers = [{value: i for i, value in enumerate(line)} for line in lines]
    marks = np.zeros([len(line) - 1 for line in lines], dtype=np.bool_)
    for part in parts:
        where = tuple(
            slice(number[a], number[z])
            for number, a, z in zip(numbers, part.offset, part.stop, strict=True)
        )
        marks[where] = True
    return bool(marks.all())
