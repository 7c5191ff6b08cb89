"""How the savers of several nodes find each other's shares: through hints in the store.

Every saver of a job whose ranks stage on several nodes writes, per rank,
``<step folder>/rank-<r>of<W>.ready.json``: what ``write_rank`` returned. The one that has rank 0
waits for the others' and seals the step. A hint is overwritten, may be stale, torn or forged and
proves nothing: it only says which record to look at, and that is checked by its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from cloudshift_lab.checkpoint.layout import StepDir, fetch_verified
from cloudshift_lab.checkpoint.write import WrittenRank
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.store import Store

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class ReadyRank(msgspec.Struct, frozen=True):
    """A rank's share is stored.

    ``incarnation`` names one start of all ranks: the same step executed again after a restart
    need not be the same bits, and must not be mixed with the first time's.
    """

    incarnation: str
    written: WrittenRank


def ready_key(place: StepDir, rank: int, world_size: int) -> str:
    """Where the hint of one rank lies."""
    return f"{place.prefix}/rank-{rank}of{world_size}.ready.json"


def tell_ready(
    store: Store, place: StepDir, world_size: int, written: WrittenRank, *, incarnation: str
) -> None:
    """Say that a rank's share is stored."""
    hint = to_json(ReadyRank(incarnation, written))
    store.put(ready_key(place, written.rank, world_size), hint)


class Gathering:
    """Waits for the shares of other nodes.

    Args:
        store: Where they write.
        world: Clock.
        wait_s: Longest wait for all of them together, seconds.
        waiting: Called between two looks.
    """

    def __init__(
        self, store: Store, world: World, *, wait_s: float, waiting: Callable[[], None]
    ) -> None:
        self._store = store
        self._world = world
        self._wait_s = wait_s
        self._waiting = waiting

    def gather(
        self, place: StepDir, world_size: int, ranks: Iterable[int], *, incarnation: str
    ) -> list[WrittenRank]:
        """The shares of these ranks that are there before the wait is over.

        Raises:
            Unavailable, Denied: As the store reported.
        """
        until = self._world.monotonic() + self._wait_s
        missing, found, pause_s = set(ranks), [], _FIRST_PAUSE_S
        while True:
            for rank in sorted(missing):
                written = self._look(place, rank, world_size, incarnation)
                if written is not None:
                    found.append(written)
                    missing.discard(rank)
            left_s = until - self._world.monotonic()
            if not missing or left_s <= 0:
                return found
            self._waiting()
            self._world.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _look(
        self, place: StepDir, rank: int, world_size: int, incarnation: str
    ) -> WrittenRank | None:
        """A rank's share if a hint of this incarnation leads to its record; a bad hint is none."""
        key = ready_key(place, rank, world_size)
        try:
            ready = from_json(self._store.get(key), ReadyRank, what=key)
            written = ready.written
            record_key = place.record_key(rank, world_size, written.digest)
            told = (ready.incarnation, written.rank, written.record_key)
            if told != (incarnation, rank, record_key):
                return None
            fetch_verified(self._store, record_key, written.digest, written.size)
        except (NotFound, Corrupt):
            return None
        return written
