"""One mapped file in shared memory, and the places of a share's tensors in it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from cloudshift_lab.core.errors import Exhausted
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.staging import StagedBox
from cloudshift_lab.training.copying import Copying
from cloudshift_lab.training.parts import Part
from cloudshift_lab.training.tree import dtype_name

_ALIGN = 64
_PAGE = 4096
Layout = tuple[tuple[str, str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]


class Slot:
    """One mapped file and the places of a share's tensors in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._layout: tuple[Layout, Layout] | None = None
        self._steady: tuple[Part, ...] = ()
        self._pinned: int | None = None
        self._parts: tuple[Part, ...] = ()
        self._plans: dict[str, Copying] = {}
        self._places: tuple[torch.Tensor, ...] = ()
        self.boxes: tuple[StagedBox, ...] = ()
        self.step: int | None = None

    def arrange(self, steady: tuple[Part, ...], volatile: tuple[Part, ...]) -> None:
        """Have places for these parts; memory is taken only when their layout is a new one.

        Raises:
            Exhausted: The shared memory is full; the slot is empty then.
        """
        known = self._layout[0] if self._layout is not None and steady is self._steady else None
        layout = (_lay(steady) if known is None else known, _lay(volatile))
        self._steady = steady
        if layout == self._layout:
            return
        self.give_back()
        parts = (*steady, *volatile)
        boxes, end = _boxes(parts)
        memory = map_new_file(self._path, max(end, 1))
        self._places = tuple(
            _place(memory, box, part.tensor) for box, part in zip(boxes, parts, strict=True)
        )
        if any(part.tensor.is_cuda for part in parts):
            self._pinned = pin(memory, max(end, 1))
        self.boxes, self._layout = boxes, layout

    def plan(self, kind: str, tensors: Sequence[torch.Tensor], *, first: int = 0) -> Copying:
        """How to copy tensors into the places from number ``first`` on.

        The same plan as before as long as they are the same tensors.
        """
        plan = self._plans.get(kind)
        if plan is None or not plan.is_of(tensors):
            plan = Copying(tensors, self._places[first : first + len(tensors)])
            self._plans[kind] = plan
        return plan

    def give_back(self) -> None:
        """Return the memory; who reads the file still keeps what it has mapped."""
        self._path.unlink(missing_ok=True)
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)  # type: ignore[no-untyped-call]
            self._pinned = None
        self._layout, self._places, self.boxes = None, (), ()
        self._plans.clear()


def map_new_file(path: Path, num_bytes: int) -> mmap.mmap:
    """A new file under ``path`` with all its memory taken and mapped now.

    No later write to it can fail or has to wait for a page.

    Raises:
        Exhausted: The shared memory is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        take(descriptor, num_bytes)
        memory = mmap.mmap(descriptor, num_bytes)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explained(error, path.parent, num_bytes) from error
    finally:
        os.close(descriptor)
    torch.frombuffer(memory, dtype=torch.uint8)[::_PAGE].numpy()[:] = 0
    return memory


def explained(error: OSError, place: Path, num_bytes: int) -> OSError | Exhausted:
    """A full memory in our words; any other error as it is."""
    if error.errno not in (errno.ENOSPC, errno.ENOMEM):
        return error
    return Exhausted(
        f"no space left in shared memory: {place} has no room for {format_bytes(num_bytes)} of "
        "this rank's state; enlarge the shared memory or use more ranks",
        num_bytes=num_bytes,
    )


def take(descriptor: int, num_bytes: int) -> None:
    """Give a file its memory now.

    Raises:
        OSError: There is not that much.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)


def pin(memory: mmap.mmap, num_bytes: int) -> int:
    """Let a CUDA device copy into this memory without the host's help. Never run, see Copying.

    Returns:
        The address that was pinned.

    Raises:
        Exhausted: The system allows no more pinned memory.
    """
    address: int = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    failure = runtime.cudaHostRegister(address, num_bytes, 0)
    if int(failure) != 0:
        raise Exhausted(
            f"{format_bytes(num_bytes)} of memory cannot be pinned (CUDA error {int(failure)}); "
            "raise the limit of locked memory (ulimit -l)"
        )
    return address


def _lay(parts: Sequence[Part]) -> Layout:
    return tuple(
        (p.name, dtype_name(p.tensor), p.global_shape, p.offset, tuple(p.tensor.shape))
        for p in parts
    )


def _boxes(parts: Sequence[Part]) -> tuple[tuple[StagedBox, ...], int]:
    """Where each part lies in a slot, and the slot's size in bytes."""
    boxes, end = [], 0
    for part in parts:
        tensor = part.tensor
        start = -(-end // _ALIGN) * _ALIGN
        end = start + tensor.nbytes
        boxes.append(
            StagedBox(
                part.name,
                dtype_name(tensor),
                part.global_shape,
                part.offset,
                tuple(tensor.shape),
                start,
                tensor.nbytes,
            )
        )
    return tuple(boxes), end


def _place(memory: mmap.mmap, box: StagedBox, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and dtype whose memory is the slot's."""
    if box.num_bytes == 0:
        return torch.empty_like(tensor, device="cpu")
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=box.start)
    return flat.view(tensor.shape)
