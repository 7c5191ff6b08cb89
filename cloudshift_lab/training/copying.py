"""Copies tensors into places prepared for them: plain memory moves, or a stream of its own."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from operator import is_

import torch

CHUNK_BYTES = 4 << 20
Move = tuple[int, int, int]


class Copying:
    """A plan to copy some tensors again and again; it allocates nothing when it runs.

    On the host each chunk is one ``memmove`` without the interpreter's lock and without the
    threads that torch would share the work between: those belong to the training step. Tensors of
    a CUDA device go through a stream of that device into the places, which are then expected to be
    pinned. That half has never been run: no machine with a GPU was at hand when it was written.

    Args:
        sources: What to copy.
        places: Host tensors of the same shapes and dtypes.
    """

    def __init__(self, sources: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> None:
        self._addresses = addresses_of(sources)
        self._sources = tuple(sources)
        self.places = tuple(places)  # kept, since the moves below hold addresses only
        self._moves: list[Move] = []
        self._odd: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._devices: dict[torch.device, _Device] = {}
        for source, place in zip(sources, places, strict=True):
            if source.is_cuda:
                device = self._devices.setdefault(source.device, _Device(source.device))
                device.pairs.append((source, place))
            elif is_plain(source):
                self._moves += _chunks(place.data_ptr(), source.data_ptr(), source.nbytes)
            else:
                self._odd.append((source, place))
        self._is_read = threading.Event()
        self._is_read.set()

    def is_of(self, sources: Sequence[torch.Tensor]) -> bool:
        """Whether the plan copies just these tensors, and they still lie where they lay."""
        return are_same(sources, self._sources, self._addresses)

    def begin(self) -> None:
        """Mark the moment whose values are copied; ``read`` follows, on any thread."""
        self._is_read.clear()
        for device in self._devices.values():
            device.begin()

    def read(self) -> None:
        """Copy: on the host now, on a device as soon as its stream gets there."""
        try:
            for device in self._devices.values():
                device.read()
            for target, source, num_bytes in self._moves:
                ctypes.memmove(target, source, num_bytes)
            with torch.no_grad():
                for tensor, place in self._odd:
                    place.copy_(tensor)
        finally:
            self.end()

    def end(self) -> None:
        """Nothing is copied any more, whether it was or not: let those who wait go on."""
        self._is_read.set()

    def fence(self) -> None:
        """Return when what the caller does next to the tensors cannot reach the copy any more.

        A host copy is waited for; on a device only the caller's stream waits, not the caller.
        """
        self._is_read.wait()
        for device in self._devices.values():
            device.fence()

    def complete(self) -> None:
        """Return when all bytes are in their places."""
        self._is_read.wait()
        for device in self._devices.values():
            device.complete()


class _Device:
    """What is copied from one CUDA device, on a stream of its own there. Never run, see Copying."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._start: torch.cuda.Event | None = None
        self._end: torch.cuda.Event | None = None
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self) -> None:
        """Mark the moment on the stream that the device computes on now."""
        self._start = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._start.record(torch.cuda.current_stream(self._device))
        self._end = None

    def read(self) -> None:
        """Have the copies made after that moment."""
        if self._start is None:
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream), torch.no_grad():
            self._stream.wait_event(self._start)
            for source, place in self.pairs:
                place.copy_(source, non_blocking=True)
            end = torch.cuda.Event()  # type: ignore[no-untyped-call]
            end.record(self._stream)
        self._end = end

    def fence(self) -> None:
        """Let what the device computes from now on wait for the copies."""
        if self._end is not None:
            torch.cuda.current_stream(self._device).wait_event(self._end)

    def complete(self) -> None:
        """Wait for the copies."""
        if self._end is not None:
            self._end.synchronize()


def are_same(
    tensors: Sequence[torch.Tensor], known: Sequence[torch.Tensor], addresses: list[int]
) -> bool:
    """Whether these are the known tensors, and each still lies where it lay."""
    return (
        len(tensors) == len(known)
        and all(map(is_, tensors, known))
        and addresses_of(tensors) == addresses
    )


def addresses_of(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Where each lies. Looked up for hundreds of tensors at each save, so without a Python loop."""
    return list(map(torch.Tensor.data_ptr, tensors))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes in host memory, from first to last, are the tensor in C order."""
    return (
        tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _chunks(target: int, source: int, num_bytes: int) -> list[Move]:
    return [
        (target + start, source + start, min(CHUNK_BYTES, num_bytes - start))
        for start in range(0, num_bytes, CHUNK_BYTES)
    ]
