"""Ranks of any mesh in this one process, one after the other: no collective runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from cloudshift_lab.checkpoint import Checkpoint, open_checkpoint, seal, write_rank
from cloudshift_lab.checkpoint.boxes import TensorBox, TensorSpec
from cloudshift_lab.checkpoint.write import Staged
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.training.parts import Part, Share
from cloudshift_lab.training.tree import dtype_name


@contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    """This process is for a while one rank of a world."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def spread(
    value: torch.Tensor, mesh: tuple[int, ...], placements: Sequence[Placement]
) -> torch.Tensor:
    """What this rank has of a tensor that lies on a mesh of all ranks; torch decides."""
    device_mesh = init_device_mesh("cpu", mesh)
    return distribute_tensor(value, device_mesh, placements, src_data_rank=None)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def staged(share: Share, step: int, rank: int, world_size: int) -> Staged:
    """A share as an agent would find it."""
    parts = (*share.steady, *share.volatile)
    return Staged(
        step=step,
        rank=rank,
        world_size=world_size,
        boxes=tuple(
            TensorBox(p.name, dtype_name(p.tensor), p.global_shape, p.offset, tuple(p.tensor.shape))
            for p in parts
        ),
        buffers=tuple(_bytes(part) for part in parts),
        leaves=share.leaves,
        catalog=tuple(TensorSpec(s.name, s.dtype, s.global_shape) for s in share.catalog),
    )


def _bytes(part: Part) -> memoryview:
    flat = part.tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().copy())


def committed(shares: Sequence[Share], step: int = 1) -> Checkpoint:
    """The shares of all ranks, stored and opened again."""
    store = MemoryStore()
    written = [
        write_rank(store, "run", staged(share, step, rank, len(shares)), generation=1)
        for rank, share in enumerate(shares)
    ]
    sealed = seal(store, "run", step, generation=1, world_size=len(shares), written=written)
    assert sealed.coverage == "complete"
    return open_checkpoint(store, "run", sealed.manifest_key, digest=sealed.manifest_digest)
