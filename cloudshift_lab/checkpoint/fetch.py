"""Fetch chunks by a plan: merged ranges stream in, are decoded, hashed and scattered meanwhile."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from cloudshift_lab.checkpoint.boxes import Ints
from cloudshift_lab.checkpoint.codecs import decode
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.storage.store import Store

CONCURRENCY = 32
MAX_THREADS = 8
MAX_REQUEST_BYTES = 8 * 2**20
MIN_REQUEST_BYTES = 2**20
MAX_WASTE_BYTES = 64 * 1024
INLINE_BYTES = 2**20
Bytes1d = npt.NDArray[np.uint8]


class Piece(NamedTuple):
    """A part of a chunk and where it goes.

    ``shape`` is the chunk's, with a last axis for the bytes of an element; ``take`` indexes it,
    ``target`` is the (writable) part of the destination with the same shape as what is taken.
    """

    location: ChunkLocation
    shape: Ints
    take: tuple[slice, ...]
    target: npt.NDArray[np.uint8]


class _Blob(NamedTuple):
    """A stored blob and everything that wants its content."""

    location: ChunkLocation
    pieces: list[Piece]


class _Range(NamedTuple):
    """Bytes of one pack that one request fetches; ``waste`` of them nobody asked for."""

    key: str
    start: int
    end: int
    waste: int
    blobs: list[_Blob]


def fetch_pieces(
    store: Store, pieces: Sequence[Piece], *, concurrency: int = CONCURRENCY,
    threads: int | None = None,
) -> None:  # fmt: skip
    """Fill every piece's target, decoding what is there while more is on its way.

    Holds at most ``concurrency + 2 * threads`` ranges of 1 to 8 MiB at a time.

    Args:
        store: Where the packs lie; it is only called from this thread.
        pieces: What is wanted; pieces of one blob share one fetch and one decode.
        concurrency: Requests at a time.
        threads: Threads that decode, hash and scatter; None: one per usable processor, up to 8.

    Raises:
        Corrupt: A chunk differs from its id, also when read again.
        NotFound: A pack is missing.
    """
    blobs = _group(pieces)
    total = sum(blob.location.stored_len for blob in blobs)
    ranges = merge_ranges(blobs, _request_bytes(total, concurrency))
    threads = min(usable_cpus(), MAX_THREADS) if threads is None else threads
    bad = _stream(store, ranges, concurrency, 1 if total <= INLINE_BYTES else threads)
    for blob in bad:
        where = blob.location
        again = store.get(
            pack_key(where.pack), start=where.offset, end=where.offset + where.stored_len
        )
        _scatter(blob, memoryview(again))


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _request_bytes(total: int, concurrency: int) -> int:
    """Two rounds of requests at least, so that decoding begins while bytes still arrive."""
    even = total // (2 * max(1, concurrency))
    return min(max(even, MIN_REQUEST_BYTES), MAX_REQUEST_BYTES)


def _group(pieces: Iterable[Piece]) -> list[_Blob]:
    blobs: dict[tuple[str, int, bytes], _Blob] = {}
    for piece in pieces:
        where = piece.location
        key = (where.pack, where.offset, where.id)
        blobs.setdefault(key, _Blob(where, [])).pieces.append(piece)
    return sorted(blobs.values(), key=lambda b: (b.location.pack, b.location.offset))


def merge_ranges(blobs: Iterable[_Blob], request_bytes: int = MAX_REQUEST_BYTES) -> list[_Range]:
    """Join neighbours of one pack into requests of about ``request_bytes``.

    Up to 64 KiB per request that lie between them are read along: less than another round trip.
    """
    ranges: list[_Range] = []
    for blob in blobs:
        where = blob.location
        key, end = pack_key(where.pack), where.offset + where.stored_len
        last = ranges[-1] if ranges else None
        waste = 0 if last is None else last.waste + max(0, where.offset - last.end)
        if (
            last is not None
            and last.key == key
            and waste <= MAX_WASTE_BYTES
            and max(end, last.end) - last.start <= request_bytes
        ):
            last.blobs.append(blob)
            ranges[-1] = last._replace(end=max(end, last.end), waste=waste)
        else:
            ranges.append(_Range(key, where.offset, end, 0, [blob]))
    return ranges


def _stream(store: Store, ranges: Sequence[_Range], concurrency: int, threads: int) -> list[_Blob]:
    """Fetch and scatter; gives back the blobs that did not match, to be read once more."""
    bad: list[_Blob] = []
    pending: deque[Future[list[_Blob]]] = deque()
    requests = [(r.key, r.start, r.end) for r in ranges]
    with ExitStack() as stack:
        answers = stack.enter_context(closing(store.get_each(requests, concurrency)))
        pool = None if threads <= 1 else stack.enter_context(ThreadPoolExecutor(threads, "decode"))
        for number, body in answers:
            if pool is None:
                bad += _scatter_range(ranges[number], body)
                continue
            pending.append(pool.submit(_scatter_range, ranges[number], body))
            while len(pending) > 2 * threads:
                bad += pending.popleft().result()
        for future in pending:
            bad += future.result()
    return bad


def _scatter_range(part: _Range, body: bytes) -> list[_Blob]:
    """Scatter every blob of a range; gives back those that did not match."""
    bad = []
    view = memoryview(body)
    for blob in part.blobs:
        start = blob.location.offset - part.start
        try:
            _scatter(blob, view[start : start + blob.location.stored_len])
        except Corrupt:
            bad.append(blob)  # read once more, and then it raises
    return bad


def _scatter(blob: _Blob, stored: memoryview) -> None:
    raw = decode_checked(blob.location, stored)
    for piece in blob.pieces:
        piece.target[...] = raw.reshape(piece.shape)[piece.take]


def decode_checked(location: ChunkLocation, stored: bytes | memoryview) -> Bytes1d:
    """Decode a blob and prove that it is the chunk with this id.

    Raises:
        Corrupt: It is not.
    """
    raw = decode(stored, location.codec, location.width, location.raw_len)
    if blake3(raw.data).digest() != location.id:
        raise Corrupt(
            f"chunk {location.id.hex()[:16]} in pack {location.pack[:16]} differs from its hash; "
            "restore the pack from another copy or use another step",
            chunk=location.id.hex(), pack=location.pack,
        )  # fmt: skip
    return raw
