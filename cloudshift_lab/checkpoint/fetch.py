"""Fetch chunks by a plan: merged ranges, every decoded chunk hashed, scattered where it belongs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

REQUEST_BYTES = 8 * 2**20
MAX_GAP_BYTES = 64 * 1024
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
    """Bytes of one pack that one request fetches."""

    key: str
    start: int
    end: int
    blobs: list[_Blob]


def fetch_pieces(store: Store, pieces: Sequence[Piece], *, concurrency: int, threads: int) -> None:
    """Fill every piece's target.

    Args:
        store: Where the packs lie.
        pieces: What is wanted; pieces of one blob share one fetch and one decode.
        concurrency: Requests at a time; bounds the memory held to that many ranges.
        threads: Threads that decode, hash and scatter.

    Raises:
        Corrupt: A chunk differs from its id, also when read again.
        NotFound: A pack is missing.
    """
    ranges = merge_ranges(_group(pieces))
    for start in range(0, len(ranges), max(1, concurrency)):
        batch = ranges[start : start + max(1, concurrency)]
        data = store.get_many([(r.key, r.start, r.end) for r in batch], concurrency=concurrency)
        work = [
            (blob, memoryview(body)[blob.location.offset - r.start :][: blob.location.stored_len])
            for r, body in zip(batch, data, strict=True)
            for blob in r.blobs
        ]
        _scatter_all(store, work, threads)


def _group(pieces: Iterable[Piece]) -> list[_Blob]:
    blobs: dict[tuple[str, int, bytes], _Blob] = {}
    for piece in pieces:
        where = piece.location
        key = (where.pack, where.offset, where.id)
        blobs.setdefault(key, _Blob(where, [])).pieces.append(piece)
    return sorted(blobs.values(), key=lambda b: (b.location.pack, b.location.offset))


def merge_ranges(blobs: Iterable[_Blob]) -> list[_Range]:
    """Join neighbours of one pack into requests of up to 8 MiB with small gaps between them."""
    ranges: list[_Range] = []
    for blob in blobs:
        where = blob.location
        key, end = pack_key(where.pack), where.offset + where.stored_len
        last = ranges[-1] if ranges else None
        if (
            last is not None
            and last.key == key
            and where.offset - last.end <= MAX_GAP_BYTES
            and max(end, last.end) - last.start <= REQUEST_BYTES
        ):
            last.blobs.append(blob)
            ranges[-1] = last._replace(end=max(end, last.end))
        else:
            ranges.append(_Range(key, where.offset, end, [blob]))
    return ranges


def _scatter_all(store: Store, work: Sequence[tuple[_Blob, memoryview]], threads: int) -> None:
    bad = list(_failed(work, threads))
    for blob in bad:
        where = blob.location
        again = store.get(
            pack_key(where.pack), start=where.offset, end=where.offset + where.stored_len
        )
        _scatter(blob, memoryview(again))


def _failed(work: Sequence[tuple[_Blob, memoryview]], threads: int) -> Iterator[_Blob]:
    """Scatter; give back the blobs that did not match, to be read once more."""

    def attempt(item: tuple[_Blob, memoryview]) -> _Blob | None:
        try:
            _scatter(*item)
        except Corrupt:
            return item[0]
        return None

    if threads <= 1:
        results: Iterable[_Blob | None] = map(attempt, work)
        yield from (blob for blob in results if blob is not None)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield from (blob for blob in pool.map(attempt, work) if blob is not None)


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
