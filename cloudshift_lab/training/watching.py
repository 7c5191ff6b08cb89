"""Tells whether tensors were changed between two looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import attrgetter, ne
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from cloudshift_lab.training.copying import addresses_of, are_same, is_plain

NUM_LINES = 8
LINE_BYTES = 64
_NUM_IN_GRID = NUM_LINES * LINE_BYTES // 4
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Bytes = npt.NDArray[np.uint8]
_VERSION = attrgetter("_version")
Kind = Literal["lines", "whole", "grid"]
_KINDS: tuple[Kind, ...] = ("lines", "whole", "grid")


class Watch:
    """Looks at the version counters of tensors, and at some bytes of each.

    The counter moves with every in-place operation of torch. It stays where it is for edits
    through ``.data``, for fused optimizers and for the local part of a sharded tensor; the sampled
    bytes are for those: a few lines of the cache, all over the tensor, or all of a small one.
    So an edit without a trace in the counter slips through if it changes few elements of a large
    tensor. Bytes of a device are not sampled: that would make the host wait.

    Args:
        names: For the report.
        tensors: As many as names.
        max_sampled: Of so many tensors, taken evenly, bytes are sampled; None: of all.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[torch.Tensor],
        *,
        max_sampled: int | None = None,
    ) -> None:
        self._names = tuple(names)
        self._tensors = tuple(tensors)
        self._addresses = addresses_of(tensors)
        self._numbers = [n for n, t in enumerate(tensors) if not t.is_inference()]
        self._counted = [tensors[n] for n in self._numbers]
        kinds = [(n, _kind(tensor)) for n, tensor in enumerate(tensors)]
        seen = [(n, kind) for n, kind in kinds if kind is not None]
        self._kinds = seen[:: 1 if max_sampled is None else -(-len(seen) // max_sampled) or 1]
        self._sampled = self._samples_of(self._tensors)
        self._copied = self._sampled
        self._places: Sequence[torch.Tensor] = self._tensors
        self._versions: list[int] = []
        self._before: Bytes = np.zeros(0, dtype=np.uint8)

    def is_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether it looks at just these tensors, and they still lie where they lay."""
        return are_same(tensors, self._tensors, self._addresses)

    def begin(self) -> None:
        """Remember how the tensors are now."""
        self._versions = self._count()
        self._before = self._sampled.bytes()

    def changed(self) -> str | None:
        """The name of a tensor that was changed since ``begin``; None when none was."""
        versions = self._count()
        if versions != self._versions:
            differs = map(ne, versions, self._versions)
            return self._names[next(compress(self._numbers, differs))]
        return self._differing(self._sampled)

    def torn_by(self, places: Sequence[torch.Tensor]) -> str | None:
        """The name of a tensor whose copy does not hold the values of ``begin``; None if all do.

        Finds also what was changed before it was copied and put back since.

        Args:
            places: The copies, as many as tensors.
        """
        if places is not self._places:
            self._copied, self._places = self._samples_of(places), places
        return self._differing(self._copied)

    def _samples_of(self, tensors: Sequence[torch.Tensor]) -> _Samples:
        return _Samples([(n, kind, tensors[n]) for n, kind in self._kinds])

    def _differing(self, samples: _Samples) -> str | None:
        now = samples.bytes()
        if np.array_equal(now, self._before):
            return None
        return self._names[samples.owner(int(np.argmax(now != self._before)))]

    def _count(self) -> list[int]:
        return list(map(_VERSION, self._counted))


class _Samples:
    """Bytes of some tensors that are looked at together, again and again.

    Args:
        tensors: Each with a number by which it is known and the kind of view to take of it.
    """

    def __init__(self, tensors: Sequence[tuple[int, Kind, torch.Tensor]]) -> None:
        views = {kind: [(n, _view(t, kind)) for n, k, t in tensors if k == kind] for kind in _KINDS}
        self._lines, self._whole, self._grids = (
            [view for _, view in views[kind]] for kind in _KINDS
        )
        every = [pair for kind in _KINDS for pair in views[kind]]
        self._owners = np.repeat([n for n, _ in every], [view.nbytes for _, view in every])

    def bytes(self) -> Bytes:
        """As they are now."""
        found: Bytes = np.empty(len(self._owners), dtype=np.uint8)
        end = len(self._lines) * NUM_LINES * LINE_BYTES
        if self._lines:
            np.concatenate(self._lines, out=found[:end].reshape(-1, LINE_BYTES))
        rest = [*self._whole, *(grid.reshape(-1).view(np.uint8) for grid in self._grids)]
        if rest:
            np.concatenate(rest, out=found[end:])
        return found

    def owner(self, place: int) -> int:
        """The number of the tensor whose byte is at a place in ``bytes``."""
        return int(self._owners[place])


def _kind(tensor: torch.Tensor) -> Kind | None:
    """How to look at a tensor; None if its bytes cannot be seen from here."""
    if tensor.numel() == 0:
        return None
    if is_plain(tensor):
        return "lines" if tensor.nbytes >= NUM_LINES * LINE_BYTES else "whole"
    is_seen = tensor.device.type == "cpu" and tensor.layout == torch.strided
    is_itself = not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    return "grid" if is_seen and is_itself and tensor.itemsize in _BITS else None


def _view(tensor: torch.Tensor, kind: Kind) -> npt.NDArray[Any]:
    if kind == "grid":
        return _grid(tensor)
    data: Bytes = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    if kind == "whole":
        return data
    lines = data[: len(data) // LINE_BYTES * LINE_BYTES].reshape(-1, LINE_BYTES)
    stride = (len(lines) // NUM_LINES - 1) | 1  # odd, so that it meets all columns of a matrix
    return lines[::stride][:NUM_LINES]


def _grid(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Some elements of a tensor that does not lie in C order; a copy in C order has the same."""
    per_axis = max(1, int(_NUM_IN_GRID ** (1 / tensor.dim())))
    steps = tuple(slice(None, None, -(-size // per_axis)) for size in tensor.shape)
    array: npt.NDArray[Any] = tensor.detach().view(_BITS[tensor.itemsize]).numpy()
    return array[steps]
