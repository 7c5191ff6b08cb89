"""Tells whether tensors were changed between two looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import attrgetter, ne

import numpy as np
import torch

from cloudshift_lab.training.copying import addresses_of, are_same, is_plain

NUM_SAMPLES = 8
_VERSION = attrgetter("_version")


class Watch:
    """Looks at the version counters and a few bytes of each tensor.

    The counter moves with every in-place operation of torch. It stays where it is for edits
    through ``.data``, for fused optimizers and for the local part of a sharded tensor; the sampled
    bytes are for those. Bytes of a device are not sampled: that would make the host wait.

    Args:
        names: For the report.
        tensors: As many as names.
    """

    def __init__(self, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
        self._names = tuple(names)
        self._tensors = tuple(tensors)
        self._addresses = addresses_of(tensors)
        self._numbers = [n for n, t in enumerate(tensors) if not t.is_inference()]
        self._counted = [tensors[n] for n in self._numbers]
        plain = [(n, t) for n, t in enumerate(tensors) if t.numel() and is_plain(t)]
        views = [_samples(tensor) for _, tensor in plain]
        self._views = views
        self._owner = np.repeat([n for n, _ in plain], [len(view) for view in views])
        self._versions: list[int] = []
        self._samples = np.zeros(0, dtype=np.uint8)

    def is_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether it looks at just these tensors, and they still lie where they lay."""
        return are_same(tensors, self._tensors, self._addresses)

    def begin(self) -> None:
        """Remember how the tensors are now."""
        self._versions = self._count()
        self._samples = self._look()

    def changed(self) -> str | None:
        """The name of a tensor that was changed since ``begin``; None when none was."""
        versions = self._count()
        if versions != self._versions:
            differs = map(ne, versions, self._versions)
            return self._names[next(compress(self._numbers, differs))]
        differing = np.flatnonzero(self._look() != self._samples)
        return self._names[self._owner[differing[0]]] if len(differing) else None

    def _count(self) -> list[int]:
        return list(map(_VERSION, self._counted))

    def _look(self) -> np.ndarray:
        return np.concatenate(self._views) if self._views else np.zeros(0, dtype=np.uint8)


def _samples(tensor: torch.Tensor) -> np.ndarray:
    """A view of bytes all over the tensor. The odd stride meets each byte of the elements."""
    data = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    stride = max(1, len(data) // NUM_SAMPLES) | 1
    return data[::stride][:NUM_SAMPLES]
