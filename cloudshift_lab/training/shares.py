"""Which rank stages which boxes, so that each is staged once and all carry about as much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cloudshift_lab.checkpoint.boxes import Ints, Region, grid_cell
from cloudshift_lab.training.sharding import Layout, LocalBox, holdings, whole_box

_SMALLEST_PIECE_BYTES = 2**20
_PIECES_PER_RANK = 16


class Holder(NamedTuple):
    """A tensor of the state and where its parts are.

    ``only``: the one rank that stages it although others have it too (buffers differ until rank 0
    has broadcast its own).
    """

    name: str
    itemsize: int
    layout: Layout
    only: int | None = None

    @property
    def num_bytes(self) -> int:
        return self.itemsize * math.prod(self.layout.global_shape)


class _Box(NamedTuple):
    num_bytes: int
    name: str
    box: LocalBox
    ranks: Ints


def deal(holders: Iterable[Holder], world_size: int) -> list[dict[str, list[LocalBox]]]:
    """Give every box of every tensor to one of the ranks that hold it.

    The same on every rank, since it depends on nothing else: no rank asks another.

    Args:
        holders: Every tensor of the state.
        world_size: Ranks to share between.

    Returns:
        Per rank the boxes that it stages, by name. Boxes that only one rank holds come first; the
        replicated ones are cut at grid lines into pieces and dealt from the largest to whoever of
        their holders carries least; a piece of a weight goes with those of its moments.
    """
    tensors = list(holders)
    total = sum(holder.num_bytes for holder in tensors)
    piece_bytes = max(total // (world_size * _PIECES_PER_RANK), _SMALLEST_PIECE_BYTES)
    load = [0] * world_size
    dealt: list[dict[str, list[LocalBox]]] = [{} for _ in range(world_size)]
    shared: list[_Box] = []
    for holder in tensors:
        for box in _boxes(holder):
            if len(box.ranks) > 1:
                shared += _pieces(box, holder, piece_bytes)
            else:
                load[box.ranks[0]] += box.num_bytes
                dealt[box.ranks[0]].setdefault(box.name, []).append(box.box)
    families: dict[tuple[str, Region, Ints], list[_Box]] = {}
    for box in shared:
        families.setdefault((_family(box.name), box.box.region, box.ranks), []).append(box)
    sizes = {key: sum(box.num_bytes for box in boxes) for key, boxes in families.items()}
    for key in sorted(families, key=lambda k: (-sizes[k], k[0], k[1].offset)):
        rank = min(key[2], key=load.__getitem__)
        load[rank] += sizes[key]
        for box in families[key]:
            dealt[rank].setdefault(box.name, []).append(box.box)
    return dealt


def _family(name: str) -> str:
    """One for a weight and what its optimizer keeps of it: ``wte`` of ``optimizer/wte/exp_avg``.

    One rank stages the same part of all of them, so that a step of the optimizer can be replayed.
    """
    kind, _, rest = name.partition("/")
    return rest.rpartition("/")[0] if kind == "optimizer" else rest


def _boxes(holder: Holder) -> Iterator[_Box]:
    if holder.num_bytes == 0:
        yield _Box(0, holder.name, whole_box(holder.layout.global_shape), holder.layout.ranks[:1])
    for boxes, ranks in holdings(holder.layout):
        stagers = ranks if holder.only is None else (holder.only,)
        for box in boxes:
            yield _Box(box.region.num_elements * holder.itemsize, holder.name, box, stagers)


def _pieces(box: _Box, holder: Holder, piece_bytes: int) -> Iterator[_Box]:
    """Cut a large replicated box between grid rows, so that no chunk is cut."""
    (start, *rest), (length, *widths) = _axes(box.box.region)
    row_bytes = holder.itemsize * math.prod(widths)
    cell_rows = (grid_cell(holder.layout.global_shape, holder.itemsize) or (1,))[0]
    rows = max(piece_bytes // (row_bytes * cell_rows), 1) * cell_rows
    if box.num_bytes <= piece_bytes or rows >= length:
        yield box
        return
    local_start, *local_rest = box.box.local_offset
    borders = [start, *range((start // rows + 1) * rows, start + length, rows), start + length]
    for low, high in itertools.pairwise(borders):
        region = Region((low, *rest), (high - low, *widths))
        piece = LocalBox(region, (local_start + low - start, *local_rest))
        yield _Box((high - low) * row_bytes, box.name, piece, box.ranks)


def _axes(region: Region) -> tuple[Ints, Ints]:
    """Offset and shape, of a 0-d region those of its one element."""
    return (region.offset, region.shape) if region.shape else ((0,), (1,))
