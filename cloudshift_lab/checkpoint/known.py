"""Chunks that a committed manifest of this store holds, and that need not be written again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cloudshift_lab.checkpoint.delta import needed
from cloudshift_lab.checkpoint.index import ChunkLocation

if TYPE_CHECKING:
    from cloudshift_lab.checkpoint.step import Checkpoint

MIN_REUSED_SHARE = 0.25


class KnownChunks:
    """Chunk id to location, in one store.

    Invariant: everything in it is referred to by a *committed* manifest; that an object is merely
    listed proves nothing.
    """

    def __init__(self, locations: Iterable[ChunkLocation] = ()) -> None:
        self._by_id = {location.id: location for location in locations}

    @classmethod
    def from_checkpoint(cls, *checkpoints: Checkpoint) -> KnownChunks:
        """The chunks of committed checkpoints of the store that will be written to."""
        return cls(location for c in checkpoints for location in c.locations())

    def find(self, chunk_id: bytes) -> ChunkLocation | None:
        """Where a chunk lies, if it is known."""
        return self._by_id.get(chunk_id)

    def and_also(self, locations: Iterable[ChunkLocation]) -> KnownChunks:
        """These and others of the same store; what is in both lies where the others say."""
        return KnownChunks((*self._by_id.values(), *locations))

    def worth_reusing(self, chunk_ids: Iterable[bytes]) -> KnownChunks:
        """What is left when packs are dropped of which these chunks use less than a quarter.

        A copy of the step takes whole packs: without this, one unchanged kilobyte (a generator's
        state) would drag 16 MiB of an older step to every target, and keep it alive for ever. A
        delta uses the packs of what it is decoded with, too.
        """
        found = [self._by_id[i] for i in set(chunk_ids) if i in self._by_id]
        while poor := little_used(found):
            found = [chunk for chunk in found if poor.isdisjoint(packs_of(chunk))]
        return KnownChunks(found)

    def __len__(self) -> int:
        return len(self._by_id)


def packs_of(chunk: ChunkLocation) -> set[str]:
    """Hashes of the packs that a chunk needs, with what it is decoded with."""
    return {chunk.pack, *(base.pack for base in needed([chunk]))} if chunk.refs else {chunk.pack}


def little_used(chunks: Iterable[ChunkLocation]) -> frozenset[str]:
    """Packs of which these chunks, and what they are decoded with, use less than a quarter."""
    wanted = list(chunks)
    blobs = {(c.pack, c.offset): c for c in (*wanted, *needed(wanted))}
    used_bytes: Counter[str] = Counter()
    for chunk in blobs.values():
        used_bytes[chunk.pack] += chunk.stored_len
    sizes = {chunk.pack: chunk.pack_size for chunk in blobs.values()}
    return frozenset(p for p, n in used_bytes.items() if n < MIN_REUSED_SHARE * sizes[p])
