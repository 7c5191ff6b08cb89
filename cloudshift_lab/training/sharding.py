"""Which boxes of a global tensor each rank of a mesh holds; pure, and then from a DTensor."""

from __future__ import annotations

import itertools
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch

from cloudshift_lab.checkpoint.boxes import Ints, Region, whole
from cloudshift_lab.core.errors import Unsupported

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Cut(NamedTuple):
    """One axis of a mesh cuts tensor axis ``axis`` into equal parts, the last ones smaller.

    With ``stripes`` > 1 the axis is first cut into so many stripes and each of them is cut; a rank
    holds its part of every stripe (what fully sharded tensor parallelism does on one axis).
    """

    axis: int
    stripes: int = 1


class Layout(NamedTuple):
    """How a tensor lies on a mesh of ranks.

    ``mesh`` is the shape of the mesh, ``ranks`` its ranks in C order, ``cuts`` one entry per mesh
    axis, applied from left to right; None: replicated along that axis.
    """

    global_shape: Ints
    mesh: Ints
    ranks: Ints
    cuts: tuple[Cut | None, ...]


class LocalBox(NamedTuple):
    """A region of the global tensor and where it begins in the tensor that a rank has."""

    region: Region
    local_offset: Ints

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where it lies, as an index into the rank's own tensor."""
        return tuple(
            slice(start, start + length)
            for start, length in zip(self.local_offset, self.region.shape, strict=True)
        )


class Holding(NamedTuple):
    """Boxes that the same ranks hold, all of them alike."""

    boxes: tuple[LocalBox, ...]
    ranks: Ints


Runs = tuple[tuple[int, int], ...]


def _chunk(length: int, num_chunks: int, index: int) -> tuple[int, int]:
    """Start and stop of a chunk: all of the same size, but for the last ones."""
    size = -(-length // num_chunks)
    start = min(index * size, length)
    return start, min(start + size, length)


def _take(runs: Runs, start: int, stop: int) -> Runs:
    """Elements ``start`` to ``stop`` of what the runs hold one after the other."""
    taken, passed = [], 0
    for first, length in runs:
        low, high = max(start - passed, 0), min(stop - passed, length)
        if low < high:
            taken.append((first + low, high - low))
        passed += length
    return tuple(taken)


def _cut_runs(runs: Runs, cut: Cut, num_parts: int, index: int) -> Runs:
    length = sum(n for _, n in runs)
    taken: list[tuple[int, int]] = []
    for stripe in range(cut.stripes):
        begin, end = _chunk(length, cut.stripes, stripe)
        start, stop = _chunk(end - begin, num_parts, index)
        taken += _take(runs, begin + start, begin + stop)
    return _joined(taken)


def _joined(runs: list[tuple[int, int]]) -> Runs:
    joined: list[tuple[int, int]] = []
    for start, length in runs:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    return tuple(joined)


def local_boxes(layout: Layout, coordinate: Ints) -> tuple[LocalBox, ...]:
    """What the rank at ``coordinate`` of the mesh holds; nothing for an empty part.

    Args:
        layout: Of the tensor.
        coordinate: One index per mesh axis.
    """
    runs: list[Runs] = [((0, length),) for length in layout.global_shape]
    for cut, num_parts, index in zip(layout.cuts, layout.mesh, coordinate, strict=True):
        if cut is not None:
            runs[cut.axis] = _cut_runs(runs[cut.axis], cut, num_parts, index)
    placed = []
    for axis_runs in runs:
        starts = itertools.accumulate((n for _, n in axis_runs), initial=0)
        placed.append([(*run, local) for run, local in zip(axis_runs, starts, strict=False)])
    boxes = (
        LocalBox(
            Region(tuple(p[0] for p in parts), tuple(p[1] for p in parts)),
            tuple(p[2] for p in parts),
        )
        for parts in itertools.product(*placed)
    )
    return tuple(box for box in boxes if box.region.num_elements)


@lru_cache(maxsize=256)
def holdings(layout: Layout) -> tuple[Holding, ...]:
    """All boxes of a tensor with the ranks that hold them; replicas come as one holding.

    The same on every rank, since it depends on the layout only.
    """
    found: dict[tuple[LocalBox, ...], list[int]] = {}
    coordinates = itertools.product(*(range(n) for n in layout.mesh))
    cut_axes = [cut is not None for cut in layout.cuts]
    known: dict[Ints, tuple[LocalBox, ...]] = {}
    for rank, coordinate in zip(layout.ranks, coordinates, strict=True):
        place = tuple(c for c, is_cut in zip(coordinate, cut_axes, strict=True) if is_cut)
        if place not in known:
            known[place] = local_boxes(layout, coordinate)
        found.setdefault(known[place], []).append(rank)
    return tuple(Holding(boxes, tuple(ranks)) for boxes, ranks in found.items() if boxes)


def boxes_of_rank(layout: Layout, rank: int) -> tuple[LocalBox, ...]:
    """What ``rank`` holds of a tensor; nothing if it is not on the mesh."""
    for holding in holdings(layout):
        if rank in holding.ranks:
            return holding.boxes
    return ()


def replicated(global_shape: Ints, world_size: int) -> Layout:
    """The layout of a tensor that every rank has as a whole."""
    return Layout(tuple(global_shape), (world_size,), tuple(range(world_size)), (None,))


def whole_box(global_shape: Ints) -> LocalBox:
    """The box of a tensor that a rank has as a whole."""
    return LocalBox(whole(global_shape), (0,) * len(global_shape))


# -- from torch -----------------------------------------------------------------------------------


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; does not import what the script does not use."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory that this rank has of a tensor, the tensor itself if it is not sharded."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def layout_of(tensor: torch.Tensor, world_size: int) -> Layout:
    """Where the parts of a tensor are; a plain one counts as equal on all ranks.

    Raises:
        Unsupported: A placement that is neither replicated nor cut along an axis.
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return replicated(shape, world_size)
    mesh = tensor.device_mesh
    cuts = tuple(_cut_of(placement) for placement in tensor.placements)
    return Layout(shape, tuple(mesh.shape), tuple(mesh.mesh.flatten().tolist()), cuts)


def _cut_of(placement: object) -> Cut | None:
    from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

    if isinstance(placement, Replicate):
        return None
    if isinstance(placement, _StridedShard):
        return Cut(placement.dim, int(placement.split_factor))
    if isinstance(placement, Shard):
        return Cut(placement.dim)
    raise Unsupported(
        f"a tensor with placement {placement} cannot be saved: its parts are not boxes of it; "
        "redistribute it to Shard or Replicate first"
    )
