"""Which rank stages which boxes, so that each is staged once and all carry about as much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cloudshift_lab.checkpoint.boxes import Ints, Region, grid_cell
from cloudshift_lab.training.sharding import Holding, Layout, LocalBox, holdings, whole_box

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


def deal(holders: Iterable[Holder], world_size: int, rank: int) -> dict[str, list[LocalBox]]:
    """Give every box of every tensor to one of the ranks that hold it.

    The same on every rank, since it depends on nothing else: no rank asks another.

    Args:
        holders: Every tensor of the state.
        world_size: Ranks to share between.
        rank: Whose boxes to tell.

    Returns:
        The boxes that ``rank`` stages, by name. Boxes that only one rank holds count first; the
        replicated ones are cut at grid lines into pieces and dealt from the largest to whoever of
        their holders carries least; a piece of a weight goes with those of its moments.
    """
    groups: dict[Ints, list[Holder]] = {}
    for holder in holders:
        groups.setdefault(tuple(sorted(holder.layout.ranks)), []).append(holder)
    dealt: dict[str, list[LocalBox]] = {}
    everywhere = tuple(range(world_size))
    load = [0] * world_size
    _deal_group(groups.pop(everywhere, []), everywhere, load, rank, dealt)
    for ranks, group in groups.items():
        _deal_group(group, ranks, load.copy(), rank, dealt)
    return dealt


def _deal_group(
    tensors: list[Holder], ranks: Ints, load: list[int], rank: int,
    dealt: dict[str, list[LocalBox]],
) -> None:  # fmt: skip
    """Deal tensors of one set of ranks.

    A rank does not know the tensors of other meshes than its own, so they must not count here.
    """
    total = sum(holder.num_bytes for holder in tensors)
    piece_bytes = max(total // (len(ranks) * _PIECES_PER_RANK), _SMALLEST_PIECE_BYTES)
    shared: list[_Box] = []
    for holder in tensors:
        for boxes, stagers in _staged(holder):
            if len(stagers) > 1:
                for box in boxes:
                    shared += _pieces(box, stagers, holder, piece_bytes)
                continue
            load[stagers[0]] += holder.itemsize * sum(box.region.num_elements for box in boxes)
            if stagers[0] == rank:
                dealt.setdefault(holder.name, []).extend(boxes)
    families: dict[tuple[str, Region, Ints], list[_Box]] = {}
    for piece in shared:
        families.setdefault((_family(piece.name), piece.box.region, piece.ranks), []).append(piece)
    sizes = {key: sum(piece.num_bytes for piece in pieces) for key, pieces in families.items()}
    for key in sorted(families, key=lambda k: (-sizes[k], k[0], k[1].offset)):
        owner = min(key[2], key=load.__getitem__)
        load[owner] += sizes[key]
        if owner == rank:
            for piece in families[key]:
                dealt.setdefault(piece.name, []).append(piece.box)


def _family(name: str) -> str:
    """One for a weight and what its optimizer keeps of it: ``wte`` of ``optimizer/wte/exp_avg``.

    One rank stages the same part of all of them, so that a step of the optimizer can be replayed.
    """
    kind, _, rest = name.partition("/")
    return rest.rpartition("/")[0] if kind == "optimizer" else rest or name


def _staged(holder: Holder) -> Iterable[Holding]:
    """Boxes with the ranks that may stage them; an empty tensor is one rank's to name."""
    if holder.num_bytes == 0:
        first = holder.layout.ranks[:1]
        return [Holding((whole_box(holder.layout.global_shape),), first)]
    found = holdings(holder.layout)
    only = holder.only
    return found if only is None else [Holding(boxes, (only,)) for boxes, _ in found]


def _pieces(box: LocalBox, ranks: Ints, holder: Holder, piece_bytes: int) -> Iterator[_Box]:
    """Cut a large replicated box between grid rows, so that no chunk is cut."""
    (start, *rest), (length, *widths) = _axes(box.region)
    row_bytes = holder.itemsize * math.prod(widths)
    cell_rows = (grid_cell(holder.layout.global_shape, holder.itemsize) or (1,))[0]
    rows = max(piece_bytes // (row_bytes * cell_rows), 1) * cell_rows
    if length * row_bytes <= piece_bytes or rows >= length:
        yield _Box(length * row_bytes, holder.name, box, ranks)
        return
    local_start, *local_rest = box.local_offset
    borders = [start, *range((start // rows + 1) * rows, start + length, rows), start + length]
    for low, high in itertools.pairwise(borders):
        region = Region((low, *rest), (high - low, *widths))
        piece = LocalBox(region, (local_start + low - start, *local_rest))
        yield _Box((high - low) * row_bytes, holder.name, piece, ranks)


def _axes(region: Region) -> tuple[Ints, Ints]:
    """Offset and shape, of a 0-d region those of its one element."""
    return (region.offset, region.shape) if region.shape else ((0,), (1,))
