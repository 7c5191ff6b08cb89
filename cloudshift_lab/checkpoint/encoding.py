"""Hashing and coding a share's chunks, in an order in which deltas find what they refer to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from blake3 import blake3

from cloudshift_lab.checkpoint.codecs import LEVELS, Bytes1d, Encoded, Verdicts, encode, judge
from cloudshift_lab.checkpoint.index import Operand
from cloudshift_lab.checkpoint.packer import OwnRun, PackedChunk, Packer
from cloudshift_lab.checkpoint.recipe import Recipe, read_chunks, smaller
from cloudshift_lab.checkpoint.share import ShareBox
from cloudshift_lab.storage.store import Store

Item = TypeVar("Item")
Result = TypeVar("Result")
Place = tuple[ShareBox, int]
_WINDOW = 64
_RUN = 8


class ShareEncoder:
    """Codes every chunk of a share that is not stored yet.

    Args:
        store: Where the bases of deltas lie.
        packer: Takes the chunks in; knows which are stored.
        ids: Per row the chunk's id; empty: computed on the way.
        recipes: By a box's first row how it is coded as a delta.
        threads: Threads that hash and compress.
        concurrency: Requests for bases at a time.
    """

    def __init__(
        self, store: Store, packer: Packer, ids: Sequence[bytes], recipes: Mapping[int, Recipe], *,
        threads: int, concurrency: int,
    ) -> None:  # fmt: skip
        self._store = store
        self._packer = packer
        self._ids = ids
        self._recipes = recipes
        self._threads = threads
        self._concurrency = concurrency
        self._verdicts: dict[tuple[int, int], Verdicts] = {}

    def encoded(self, boxes: Sequence[ShareBox]) -> Iterator[PackedChunk]:
        """All chunks, level by level; each must be added to the packer before the next is asked."""
        plain = [box for box in boxes if box.first_row not in self._recipes]
        yield from in_order(self._alone, _places(plain), self._threads)
        deltas = [box for box in boxes if box.first_row in self._recipes]
        for level in range(1, max(LEVELS.values()) + 1):
            places = _places(b for b in deltas if self._recipes[b.first_row].level == level)
            while window := list(islice(places, _WINDOW)):
                yield from self._window(window)

    def _window(self, window: Sequence[Place]) -> Iterator[PackedChunk]:
        """Chunks of one level: their bases are fetched together."""
        work = [(box, number, self._id(box, number)) for box, number in window]
        new = [item for item in work if self._packer.find(item[2]) is None]
        wanted = (self._recipes[b.first_row].stored(number) or () for b, number, _ in new)
        bases = read_chunks(
            self._store, (c for chunks in wanted for c in chunks), self._concurrency
        )
        return in_order(lambda item: self._delta(*item, bases), work, self._threads)

    def _alone(self, place: Place) -> PackedChunk:
        box, number = place
        row, raw, name = box.first_row + number, box.chunk(number), self._id(box, number)
        encoded = None if self._packer.find(name) is not None else self._coded(box, number)
        return PackedChunk(row, name, len(raw), encoded)

    def _coded(self, box: ShareBox, number: int) -> Encoded:
        """A chunk coded alone, by one thread just where it will lie in the pack."""
        room = self._packer.room if self._threads <= 1 else None
        return encode(
            box.chunk(number), box.kind, room=room, verdicts=self._judged(box, number // _RUN)
        )

    def _judged(self, box: ShareBox, run: int) -> Verdicts:
        """What samples say of a run of neighbouring chunks; the same whatever is coded first."""
        if box.num_chunks == 1:
            return ()
        found = self._verdicts.get((box.first_row, run))
        if found is None:
            start, stop = box.starts[run * _RUN], box.starts[min(run * _RUN + _RUN, box.num_chunks)]
            found = self._verdicts[box.first_row, run] = judge(box.flat[start:stop], box.kind)
        return found

    def _delta(
        self, box: ShareBox, number: int, name: bytes, bases: Mapping[bytes, Bytes1d]
    ) -> PackedChunk:
        row, raw, recipe = box.first_row + number, box.chunk(number), self._recipes[box.first_row]
        if self._packer.find(name) is not None:
            return PackedChunk(row, name, len(raw), None)
        stored = recipe.stored(number)
        refs = recipe.refs(box, number)
        if stored is None or any(c.id not in bases for c in stored) or not self._fits(recipe, refs):
            return PackedChunk(row, name, len(raw), encode(raw, box.kind))
        encoded, is_delta = smaller(box, number, recipe, [bases[c.id] for c in stored])
        return PackedChunk(row, name, len(raw), encoded, refs if is_delta else ())

    def _fits(self, recipe: Recipe, refs: Iterable[OwnRun | Operand]) -> bool:
        """Whether what the chunk would refer to was coded on lower levels than its own."""
        runs = (ref for ref in refs if isinstance(ref, OwnRun))
        codecs = (self._packer.at_row(row).codec for run in runs for row in run.rows)
        return all(LEVELS[codec] < recipe.level for codec in codecs)

    def _id(self, box: ShareBox, number: int) -> bytes:
        return self._ids[box.first_row + number] if self._ids else chunk_id(box.chunk(number))


def chunk_id(raw: Bytes1d) -> bytes:
    """What names a chunk."""
    return blake3(raw.data).digest()


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """``map`` over several threads, with a bounded number of results waiting."""
    if threads <= 1:
        yield from map(work, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        while window := list(islice(source, _WINDOW)):
            yield from pool.map(work, window)


def _places(boxes: Iterable[ShareBox]) -> Iterator[Place]:
    return ((box, number) for box in boxes for number in range(box.num_chunks))
