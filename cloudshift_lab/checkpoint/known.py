"""Chunks that a committed manifest of this store holds, and that need not be written again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

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

    def worth_reusing(self, chunk_ids: Iterable[bytes]) -> KnownChunks:
        """What is left when packs are dropped of which these chunks use less than a quarter.

        A copy of the step takes whole packs: without this, one unchanged kilobyte (a generator's
        state) would drag 16 MiB of an older step to every target, and keep it alive for ever.
        """
        found = [self._by_id[i] for i in set(chunk_ids) if i in self._by_id]
        used_bytes: Counter[str] = Counter()
        for location in found:
            used_bytes[location.pack] += location.stored_len
        return KnownChunks(
            location
            for location in found
            if used_bytes[location.pack] >= MIN_REUSED_SHARE * location.pack_size
        )

    def __len__(self) -> int:
        return len(self._by_id)
