"""What one rank stages of the state: boxes of global tensors, by reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cloudshift_lab.core.staging import StagedSpec


@dataclass(frozen=True)
class Part:
    """One box of a global tensor. ``tensor`` holds its elements and has the box's shape."""

    name: str
    tensor: torch.Tensor
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """This rank's share of the state after one step, nothing copied yet.

    ``steady`` changes only in the optimizer's step, so that it may be copied during the next
    forward and backward pass. ``volatile`` (buffers, randomness, extras) may change at any moment
    and is copied at the boundary. ``catalog`` names every tensor of the whole state, also those
    of other ranks. ``leaves`` is everything that is not a tensor,
    plain or already as typed JSON (``msgspec.Raw``).
    """

    steady: tuple[Part, ...]
    volatile: tuple[Part, ...]
    leaves: object
    catalog: tuple[StagedSpec, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of this rank's parts."""
        return sum(part.tensor.nbytes for part in (*self.steady, *self.volatile))
