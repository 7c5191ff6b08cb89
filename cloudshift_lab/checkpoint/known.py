"""Chunks that a committed manifest of this store holds, and that need not be written again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cloudshift_lab.checkpoint.index import ChunkLocation

if TYPE_CHECKING:
    from cloudshift_lab.checkpoint.step import Checkpoint


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

    def __len__(self) -> int:
        return len(self._by_id)
