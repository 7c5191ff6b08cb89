"""A store as a save sees it: it tells of every request that ended, and puts no pack twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.store import Blob, Request, Store

_PACKS = "packs/"


class UploadStore:
    """Implements ``Store`` around another one, for the saves of one process.

    A save that failed half way is tried again: the packs that this very process has put for the
    step need not travel again, since a pack's name is the hash of its bytes. ``begin`` forgets
    them when another step is saved, and those that the collector is about to delete.

    Args:
        store: Where the requests go.
        moved: Told the bytes written after each request that ended (0 for a reading one).
    """

    def __init__(self, store: Store, moved: Callable[[int], None]) -> None:
        self._store = store
        self._moved = moved
        self._lock = threading.Lock()
        self._step: int | None = None
        self._put: dict[str, int] = {}

    @property
    def url(self) -> str:
        return self._store.url

    def begin(self, step: int, dead_packs: frozenset[str] = frozenset()) -> None:
        """A save of ``step`` begins; packs of these hashes must not be relied on."""
        if step != self._step:
            self._step, self._put = step, {}
        self._put = {key: n for key, n in self._put.items() if key[-69:-5] not in dead_packs}

    def forget(self) -> None:
        """Something that was put is not there as it should be: put everything again."""
        self._put = {}

    def put(self, key: str, data: Blob) -> None:
        with self._lock:
            is_there = self._put.get(key) == len(data)
        if not is_there:
            self._store.put(key, data)
        if key.startswith(_PACKS):
            with self._lock:
                self._put[key] = len(data)
        self._moved(len(data))

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        fan_out(lambda item: self.put(*item), objects.items(), concurrency)

    def create(self, key: str, data: bytes) -> bool:
        is_ours = self._store.create(key, data)
        self._moved(len(data))
        return is_ours

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        data = self._store.get(key, start=start, end=end)
        self._moved(0)
        return data

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        return fan_out(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        with closing(self._store.get_each(requests, concurrency)) as answers:
            for answer in answers:
                self._moved(0)
                yield answer

    def size(self, key: str) -> int | None:
        found = self._store.size(key)
        self._moved(0)
        return found

    def list(self, prefix: str) -> list[str]:
        found = self._store.list(prefix)
        self._moved(0)
        return found

    def delete(self, key: str) -> None:
        self._store.delete(key)
        self._moved(0)
