"""Fetch chunks by a plan: merged ranges stream in, are decoded, hashed and scattered meanwhile."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.boxes import Ints
from cloudshift_lab.checkpoint.codecs import LEVELS, Bytes1d
from cloudshift_lab.checkpoint.delta import decode_checked, to_read
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.storage.store import Store

CONCURRENCY = 32
MAX_THREADS = 8
MAX_REQUEST_BYTES = 8 * 2**20
MIN_REQUEST_BYTES = 2**20
IN_FLIGHT_BYTES = 96 * 2**20
PENDING_BYTES = 32 * 2**20
MAX_WASTE_BYTES = 64 * 1024
INLINE_BYTES = 2**20


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
    """A stored blob and everything that wants its content; only deltas want a base's.

    ``turn``: the lower, the earlier it is to be fetched.
    """

    location: ChunkLocation
    pieces: list[Piece]
    turn: int = 0

    @property
    def operands(self) -> frozenset[bytes]:
        """Ids of the chunks it is decoded with."""
        return frozenset(chunk.id for operand in self.location.refs for chunk in operand.chunks)


class _Range(NamedTuple):
    """Bytes of one pack that one request fetches; ``waste`` of them nobody asked for."""

    key: str
    start: int
    end: int
    waste: int
    blobs: list[_Blob]


class _Arrived(NamedTuple):
    """A blob with its bytes."""

    blob: _Blob
    stored: memoryview


class _Tried(NamedTuple):
    """What came of decoding: ``raw`` is None where it does not match, or nobody needs it again."""

    blob: _Blob
    matched: bool
    raw: Bytes1d | None


def fetch_pieces(
    store: Store, pieces: Sequence[Piece], *, concurrency: int = CONCURRENCY,
    threads: int | None = None,
) -> None:  # fmt: skip
    """Fill every piece's target, decoding what is there while more is on its way.

    Beside the targets it holds up to 96 MiB that are on their way (more only if ``concurrency``
    is above 96), 32 MiB that wait for a thread or are being decoded, with the bases decoded from
    them, and bases whose deltas are on their way, and the other way round. Ranges are fetched in
    such an order that these come soon after each other, however large the whole is, if they lie in
    the packs in about the same order.

    Args:
        store: Where the packs lie; it is only called from this thread.
        pieces: What is wanted; pieces of one chunk share one fetch and one decode.
        concurrency: Requests at a time.
        threads: Threads that decode, hash and scatter; None: one per usable processor, up to 8.

    Raises:
        Corrupt: A chunk differs from its id, also when read again.
        NotFound: A pack is missing.
    """
    blobs = _group(pieces)
    total = sum(blob.location.stored_len for blob in blobs)
    ranges = _in_stream_order(merge_ranges(_by_place(blobs), bytes_per_request(total, concurrency)))
    if total <= INLINE_BYTES:
        threads = 1
    elif threads is None:
        threads = min(usable_cpus(), MAX_THREADS)
    requests = [(r.key, r.start, r.end) for r in ranges]
    with ExitStack() as stack:
        answers = stack.enter_context(closing(store.get_each(requests, concurrency)))
        pool = None if threads <= 1 else stack.enter_context(ThreadPoolExecutor(threads, "decode"))
        scatter = _Scatter(store, blobs, pool)
        for number, body in answers:
            scatter.arrived(ranges[number], memoryview(body))
        scatter.finish()


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bytes_per_request(total: int, concurrency: int) -> int:
    """Two rounds of requests at least, so that decoding begins while bytes still arrive."""
    even = total // (2 * max(1, concurrency))
    most = min(IN_FLIGHT_BYTES // max(1, concurrency), MAX_REQUEST_BYTES)
    return max(min(even, most), MIN_REQUEST_BYTES)


def _group(pieces: Iterable[Piece]) -> list[_Blob]:
    """Each content once, in the order in which it is wanted, and what that is decoded with."""
    wanted: dict[bytes, list[Piece]] = {}
    for piece in pieces:
        wanted.setdefault(piece.location.id, []).append(piece)
    chosen = to_read(piece.location for each in wanted.values() for piece in each)
    return [_Blob(location, wanted.get(location.id, [])) for location in chosen]


def _by_place(blobs: Iterable[_Blob]) -> list[_Blob]:
    return sorted(_numbered(blobs), key=lambda b: (b.location.pack, b.location.offset))


def _numbered(blobs: Iterable[_Blob]) -> list[_Blob]:
    """With the stream key: what is decoded with others comes when the first of its users does."""
    keys: dict[bytes, int] = {}
    numbered = enumerate(blobs)
    for number, blob in sorted(numbered, key=lambda n: -LEVELS.get(n[1].location.codec, 0)):
        key = keys.setdefault(blob.location.id, number)
        for chunk_id in blob.operands:
            keys[chunk_id] = min(keys.get(chunk_id, key), key)
    return [blob._replace(turn=keys[blob.location.id]) for blob in blobs]


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


def _in_stream_order(ranges: list[_Range]) -> list[_Range]:
    """Deltas beside their bases, so that neither waits long for the other."""
    return sorted(ranges, key=lambda part: min(blob.turn for blob in part.blobs))


class _Scatter:
    """Decodes what has arrived as soon as what it is decoded with has been decoded.

    Only the thread that makes it calls it; the pool's threads only decode and copy.

    Args:
        store: Read again where bytes came damaged.
        blobs: All that will arrive.
        pool: Threads to work in; None: this one.
    """

    def __init__(
        self, store: Store, blobs: Iterable[_Blob], pool: ThreadPoolExecutor | None
    ) -> None:  # fmt: skip
        self._store = store
        self._pool = pool
        self._uses = Counter(chunk_id for blob in blobs for chunk_id in blob.operands)
        self._decoded: dict[bytes, Bytes1d] = {}
        self._parked: dict[bytes, list[_Arrived]] = {}
        self._pending: deque[tuple[int, Future[list[_Tried]]]] = deque()
        self._pending_bytes = 0
        self._bad: list[_Blob] = []

    def arrived(self, part: _Range, body: memoryview) -> None:
        """Take the bytes of a range; waits while much is still to be decoded."""
        starts = [(blob, blob.location.offset - part.start) for blob in part.blobs]
        self._begin([_Arrived(b, body[at : at + b.location.stored_len]) for b, at in starts])
        while self._pending_bytes > PENDING_BYTES:
            self._take_oldest()

    def finish(self) -> None:
        """Decode all that is left; read damaged blobs once more.

        Raises:
            Corrupt: A chunk still differs from its id.
        """
        while self._pending or self._bad:
            while self._pending:
                self._take_oldest()
            bad, self._bad = self._bad, []
            self._take([self._read_again(blob) for blob in bad])
        if self._parked:
            raise Corrupt("deltas wait for each other in a circle; use another step")

    def _take_oldest(self) -> None:
        num_bytes, tried = self._pending.popleft()
        self._pending_bytes -= num_bytes
        self._take(tried.result())

    def _begin(self, batch: list[_Arrived]) -> None:
        """Work on what can be decoded; park what waits for a base."""
        ready: list[_Arrived] = []
        for each in batch:
            missing = next((i for i in each.blob.operands if i not in self._decoded), None)
            if missing is None:
                ready.append(each)
            else:
                self._parked.setdefault(missing, []).append(_alone(each))
        if not ready:
            return
        if self._pool is None:
            self._take([self._try(each) for each in ready])
        else:
            num_bytes = sum(len(each.stored) for each in ready)
            self._pending_bytes += num_bytes
            tried = self._pool.submit(lambda: [self._try(each) for each in ready])
            self._pending.append((num_bytes, tried))

    def _try(self, each: _Arrived) -> _Tried:
        try:
            raw = self._decode(*each)
        except Corrupt:
            return _Tried(each.blob, matched=False, raw=None)  # read once more, then it raises
        return _Tried(each.blob, matched=True, raw=raw)

    def _decode(self, blob: _Blob, stored: memoryview) -> Bytes1d | None:
        raw = decode_checked(blob.location, stored, self._decoded.__getitem__)
        for piece in blob.pieces:
            if math.prod(piece.shape) != len(raw):
                raise Corrupt(
                    f"chunk {blob.location.id.hex()[:16]} has {len(raw)} bytes and stands for "
                    f"{math.prod(piece.shape)}; use another step"
                )
            piece.target[...] = raw.reshape(piece.shape)[piece.take]
        return raw if self._uses[blob.location.id] else None

    def _take(self, tried: list[_Tried]) -> None:
        """Note what was decoded, let go of bases that all have used, go on with their deltas."""
        woken: list[_Arrived] = []
        for blob, matched, raw in tried:
            if not matched:
                self._bad.append(blob)
                continue
            if raw is not None:
                self._decoded[blob.location.id] = raw
                woken += self._parked.pop(blob.location.id, [])
            for chunk_id in blob.operands:
                self._uses[chunk_id] -= 1
                if not self._uses[chunk_id]:
                    del self._decoded[chunk_id]
        if woken:
            self._begin(woken)

    def _read_again(self, blob: _Blob) -> _Tried:
        where = blob.location
        end = where.offset + where.stored_len
        again = self._store.get(pack_key(where.pack), start=where.offset, end=end)
        return _Tried(blob, matched=True, raw=self._decode(blob, memoryview(again)))


def _alone(each: _Arrived) -> _Arrived:
    """Without the rest of its range, which would stay in memory as long."""
    is_alone = memoryview(each.stored.obj).nbytes == len(each.stored)
    return each if is_alone else each._replace(stored=memoryview(bytes(each.stored)))
