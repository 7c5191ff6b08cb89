"""Which parts of which tensors this rank stages, worked out once and used for many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from cloudshift_lab.checkpoint.boxes import Ints
from cloudshift_lab.core.staging import StagedSpec
from cloudshift_lab.training.parts import Part
from cloudshift_lab.training.sharding import LocalBox, is_sharded, layout_of, local_of
from cloudshift_lab.training.shares import Holder, deal
from cloudshift_lab.training.standing import Located
from cloudshift_lab.training.tree import dtype_name

_BUFFERS_OF = 0
_Look = tuple[torch.Size, torch.dtype, bool]


class SharePlan:
    """This rank's part of the staging, until other tensors take the place of those planned for.

    Args:
        steady: Tensors that only an optimizer's step changes.
        volatile: Tensors that may change at any moment; plain ones are rank 0's to stage.
        rank: Of this process.
        world_size: Ranks of the job.

    Raises:
        Unsupported: A tensor whose parts are not boxes.
    """

    def __init__(
        self, steady: Mapping[str, torch.Tensor], volatile: Mapping[str, torch.Tensor], *,
        rank: int, world_size: int,
    ) -> None:  # fmt: skip
        everything = {**steady, **volatile}
        holders = [
            Holder(
                name,
                tensor.element_size(),
                layout_of(tensor, world_size),
                _BUFFERS_OF if name in volatile and not is_sharded(tensor) else None,
            )
            for name, tensor in everything.items()
        ]
        mine = deal(holders, world_size, rank)
        self.num_bytes = sum(holder.num_bytes for holder in holders)
        self.catalog = tuple(
            StagedSpec(name, dtype_name(tensor), tuple(tensor.shape))
            for name, tensor in everything.items()
        )
        self._boxes = {name: boxes for name, boxes in mine.items() if name in volatile}
        self._looks = {name: _look(tensor) for name, tensor in volatile.items()}
        self._located = Located(steady.values())
        self.steady = tuple(
            part
            for name, boxes in mine.items()
            if name in steady
            for part in _parts(name, steady[name], boxes)
        )

    def fits(self, volatile: Mapping[str, torch.Tensor]) -> bool:
        """Whether the planned tensors have their memory, and the volatile ones their looks."""
        return (
            self._looks.keys() == volatile.keys()
            and all(_look(volatile[name]) == look for name, look in self._looks.items())
            and self._located.holds()
        )

    def volatile(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Part, ...]:
        """This rank's parts of the volatile tensors as they are now."""
        return tuple(
            part
            for name, boxes in self._boxes.items()
            for part in _parts(name, tensors[name], boxes)
        )


def whole_part(name: str, tensor: torch.Tensor) -> Part:
    """A tensor that belongs to this rank alone."""
    shape = tuple(tensor.shape)
    return Part(name, tensor.detach(), shape, (0,) * len(shape))


def _look(tensor: torch.Tensor) -> _Look:
    return (tensor.shape, tensor.dtype, is_sharded(tensor))


def _parts(name: str, tensor: torch.Tensor, boxes: list[LocalBox]) -> list[Part]:
    local, global_shape = local_of(tensor).detach(), tuple(tensor.shape)
    return [
        Part(name, _elements(local, box, global_shape), global_shape, box.region.offset)
        for box in boxes
    ]


def _elements(local: torch.Tensor, box: LocalBox, global_shape: Ints) -> torch.Tensor:
    """The box's elements, by reference."""
    if math.prod(global_shape) == 0:
        return local.new_empty(global_shape)
    if local.shape == box.region.shape:
        return local
    found = local[box.slices]
    assert found.shape == box.region.shape, "the layout says other sizes than the tensor has"
    return found
