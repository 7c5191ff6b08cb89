"""Saving and restoring plain tensors with our format, without a session around it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from cloudshift_lab.checkpoint.boxes import TensorBox, TensorSpec, whole
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.reader import BoxRequest, Checkpoint
from cloudshift_lab.checkpoint.seal import Sealed, seal
from cloudshift_lab.checkpoint.write import Staged, WrittenRank, write_rank
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store
from cloudshift_lab.training.tree import dtype_name

RUN = "bench"
GENERATION = 1


def stage(tensors: Mapping[str, torch.Tensor], step: int, leaves: object = None) -> Staged:
    """Whole tensors of one rank, by reference."""
    boxes = []
    for name, tensor in tensors.items():
        region = whole(tuple(tensor.shape))
        shape = tuple(tensor.shape)
        boxes.append(TensorBox(name, dtype_name(tensor), shape, region.offset, shape))
    catalog = tuple(TensorSpec(b.name, b.dtype, b.global_shape) for b in boxes)
    buffers = tuple(raw_bytes(tensor) for tensor in tensors.values())
    return Staged(step, 0, 1, tuple(boxes), buffers, leaves, catalog)


def raw_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A contiguous tensor's own memory."""
    flat: npt.NDArray[np.uint8] = tensor.detach().view(-1).view(torch.uint8).numpy()
    return flat


def commit(store: Store, written: WrittenRank, step: int) -> tuple[Sealed, LogRecord]:
    """Seal what one rank wrote and make the step exist."""
    sealed = seal(store, RUN, step, generation=GENERATION, world_size=1, written=[written])
    log = RunLog(store, RUN)
    log.acquire(generation=GENERATION, owner="bench", nonce="bench")
    record = log.commit(
        generation=GENERATION, step=step, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce=f"bench-{step}",
    )  # fmt: skip
    return sealed, record


def save(
    store: Store, tensors: Mapping[str, torch.Tensor], step: int, leaves: object = None, *,
    base: Checkpoint | None = None,
) -> WrittenRank:  # fmt: skip
    """Store a step and commit it; what ``base`` holds is not written again."""
    written = write_rank(
        store, RUN, stage(tensors, step, leaves), generation=GENERATION, base=base,
        known=None if base is None else KnownChunks.from_checkpoint(base),
    )  # fmt: skip
    commit(store, written, step)
    return written


def restore(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read a step into tensors that are there already."""
    requests = []
    for name in tensors:
        shape = checkpoint.spec(name).global_shape
        requests.append(BoxRequest(name, (0,) * len(shape), shape))
    checkpoint.read_many(requests, out=[raw_bytes(tensor) for tensor in tensors.values()])


def num_different(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> int:
    """Tensors that are missing or differ in any bit."""
    return sum(
        name not in found or raw_bytes(found[name]).tobytes() != raw_bytes(tensor).tobytes()
        for name, tensor in expected.items()
    )
