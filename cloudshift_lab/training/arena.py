"""The rank's half of staging: two preallocated slots in shared memory, filled in turn."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.core.errors import Exhausted
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.staging import (
    NUM_SLOTS,
    StagedBox,
    StagedRank,
    replace_file,
    slot_file,
    staged_file,
)
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.training.tree import dtype_name

_ALIGN = 64
Layout = tuple[tuple[str, str, tuple[int, ...]], ...]


class Slot:
    """One mapped file and the places of its tensors in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._layout: Layout | None = None
        self._places: list[torch.Tensor] = []
        self.boxes: tuple[StagedBox, ...] = ()

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors in; memory is taken once and again only when the layout changes.

        Raises:
            Exhausted: The shared memory is full.
        """
        layout = tuple((n, dtype_name(t), tuple(t.shape)) for n, t in tensors.items())
        if layout != self._layout:
            self._allocate(tensors)
            self._layout = layout
        with torch.no_grad():
            for place, tensor in zip(self._places, tensors.values(), strict=True):
                place.copy_(tensor)

    def _allocate(self, tensors: Mapping[str, torch.Tensor]) -> None:
        boxes, end = [], 0
        for name, tensor in tensors.items():
            start = -(-end // _ALIGN) * _ALIGN
            end = start + tensor.nbytes
            shape = tuple(tensor.shape)
            origin = (0,) * len(shape)
            boxes.append(
                StagedBox(name, dtype_name(tensor), shape, origin, shape, start, tensor.nbytes)
            )
        memory = _map_new_file(self._path, max(end, 1))
        self._places = [
            _place(memory, box, tensor) for box, tensor in zip(boxes, tensors.values(), strict=True)
        ]
        self.boxes = tuple(boxes)


class Arena:
    """Keeps the newest complete state of this rank while the next one is being copied.

    Invariant: the slot that holds the newest complete step is never the one written to.

    Args:
        node_dir: The agent's shared directory.
        rank: Of this process.
        world_size: Ranks of the job.
    """

    def __init__(self, node_dir: Path, rank: int, world_size: int) -> None:
        self._node_dir = node_dir
        self._rank = rank
        self._world_size = world_size
        self._slots = [Slot(slot_file(node_dir, rank, k)) for k in range(NUM_SLOTS)]
        self._newest = NUM_SLOTS - 1
        self._prepared: tuple[int, StagedRank] | None = None
        self.staged_step: int | None = None

    @property
    def prepared_step(self) -> int | None:
        """The step that is copied but not announced yet."""
        return None if self._prepared is None else self._prepared[1].step

    def stage(
        self, step: int, tensors: Mapping[str, torch.Tensor], leaves: object, *, is_last: bool
    ) -> None:
        """Copy a share of the state and say that it is complete: ``prepare``, then ``announce``.

        Raises:
            Exhausted: The shared memory is full; the step before stays staged.
            UsageError: A leaf that a checkpoint cannot hold.
        """
        self.prepare(step, tensors, leaves, is_last=is_last)
        self.announce()

    def prepare(
        self, step: int, tensors: Mapping[str, torch.Tensor], leaves: object, *, is_last: bool
    ) -> None:
        """Copy a share of the state as it is now; nobody is told of it yet.

        Args:
            step: Optimizer step after which the state is.
            tensors: This rank's share, whole tensors.
            leaves: Everything of this rank that is not a tensor.
            is_last: No further step follows.

        Raises:
            Exhausted: The shared memory is full; the step before stays staged.
            UsageError: A leaf that a checkpoint cannot hold.
        """
        self._prepared = None
        described = msgspec.Raw(encode_leaves(leaves))
        number = (self._newest + 1) % NUM_SLOTS
        announcement = staged_file(self._node_dir, self._rank, number)
        announcement.unlink(missing_ok=True)
        slot = self._slots[number]
        slot.fill(tensors)
        staged = StagedRank(
            step=step,
            is_last=is_last,
            rank=self._rank,
            world_size=self._world_size,
            slot_file=slot_file(self._node_dir, self._rank, number).name,
            boxes=slot.boxes,
            leaves=described,
        )
        self._prepared = (number, staged)

    def announce(self) -> None:
        """Say that what was prepared is complete; no-op when nothing is."""
        if self._prepared is None:
            return
        (number, staged), self._prepared = self._prepared, None
        replace_file(staged_file(self._node_dir, self._rank, number), to_json(staged))
        self._newest, self.staged_step = number, staged.step


def _map_new_file(path: Path, num_bytes: int) -> mmap.mmap:
    """A new file under ``path`` with all its memory taken now, so that no later write can fail."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _take(descriptor, num_bytes)
        memory = mmap.mmap(descriptor, num_bytes)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        raise Exhausted(
            f"no room for {format_bytes(num_bytes)} in {path.parent}; a rank needs twice its share "
            "of the state there: enlarge the shared memory or use more ranks",
            num_bytes=num_bytes,
        ) from error
    finally:
        os.close(descriptor)
    return memory


def _take(descriptor: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)


def _place(memory: mmap.mmap, box: StagedBox, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and dtype whose memory is the slot's."""
    if box.num_bytes == 0:
        return torch.empty_like(tensor, device="cpu")
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=box.start)
    return flat.view(tensor.shape)
