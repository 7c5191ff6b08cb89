"""A store in this process's memory: for simulations and tests."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence

from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.storage.keys import check_key, check_range, under
from cloudshift_lab.storage.store import Blob, Request, check_create_size


class MemoryStore:
    """Objects in a dictionary; every operation is atomic."""

    def __init__(self, url: str = "memory://store") -> None:
        self.url = url.rstrip("/")
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r})"

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        first, last = check_range(start, end)
        with self._lock:
            data = self._objects.get(check_key(key))
        if data is None:
            raise NotFound(f"{self.url}/{key} does not exist; check the name", key=key)
        return data[first:last]

    def put(self, key: str, data: Blob) -> None:
        with self._lock:
            self._objects[check_key(key)] = bytes(data)

    def create(self, key: str, data: bytes) -> bool:
        check_create_size(data)
        with self._lock:
            return self._objects.setdefault(check_key(key), bytes(data)) == data

    def size(self, key: str) -> int | None:
        with self._lock:
            data = self._objects.get(check_key(key))
        return None if data is None else len(data)

    def list(self, prefix: str) -> list[str]:
        start = under(prefix)
        with self._lock:
            return sorted(key for key in self._objects if key.startswith(start))

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        del concurrency
        return [self.get(key, start=start, end=end) for key, start, end in requests]

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        del concurrency
        for number, (key, start, end) in enumerate(requests):
            yield number, self.get(key, start=start, end=end)

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        del concurrency
        for key, data in objects.items():
            self.put(key, data)


_SHARED: dict[str, MemoryStore] = {}
_SHARED_LOCK = threading.Lock()


def shared_memory_store(url: str) -> MemoryStore:
    """The store of that name in this process: two openers of one URL see the same objects."""
    with _SHARED_LOCK:
        return _SHARED.setdefault(url.rstrip("/"), MemoryStore(url))
