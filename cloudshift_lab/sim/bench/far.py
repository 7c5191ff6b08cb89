"""An object store far away, in memory: every request takes its time, and all are counted."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import Any

from fsspec import register_implementation
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.fanout import fan_out, fan_out_each
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Request

PROTOCOL = "far"


class Link:
    """The way there: ``latency_s`` per request, then ``bytes_per_s`` per connection.

    Connections do not share a limit, as between a virtual machine and an object store of a cloud
    (up to the machine's network, which is not simulated).
    """

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.num_requests, self.num_bytes = 0, 0

    def travel(self, num_bytes: int) -> None:
        """Wait as long as one request with an answer of that size takes."""
        with self._lock:
            self.num_requests += 1
            self.num_bytes += num_bytes
        REAL_WORLD.sleep(self._latency_s + num_bytes / self._bytes_per_s)


class FarStore(MemoryStore):
    """Our store interface; reading travels, writing does not."""

    def __init__(self, link: Link) -> None:
        super().__init__("memory://far")
        self._link = link

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        data = super().get(key, start=start, end=end)
        self._link.travel(len(data))
        return data

    def size(self, key: str) -> int | None:
        self._link.travel(0)
        return super().size(key)

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        return fan_out(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        return fan_out_each(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)


class FarFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The same for whoever reads through fsspec: one HEAD per file, ranges with read-ahead.

    Args:
        objects: Path to content.
        link: The way there.
        block_size: Bytes that are read ahead of each request, as s3fs does.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(
        self, *, objects: dict[str, bytes], link: Link, block_size: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.objects = objects
        self.link = link
        self._block_size = block_size

    def info(self, path: str, **options: Any) -> dict[str, object]:
        del options
        name = self._strip_protocol(path)
        self.link.travel(0)
        if name not in self.objects:
            raise FileNotFoundError(name)
        return {"name": name, "size": len(self.objects[name]), "type": "file"}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:  # noqa: FBT001, FBT002
        del options
        start = f"{self._strip_protocol(path)}/"
        names = [name for name in self.objects if name.startswith(start)]
        return [self.info(name) for name in names] if detail else names

    def _open(self, path: str, mode: str = "rb", **options: Any) -> _FarFile:
        del options
        size = self.info(path)["size"]
        return _FarFile(self, path, mode, block_size=self._block_size, size=size)


class _FarFile(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.objects[self.fs._strip_protocol(self.path)][start:end]
        self.fs.link.travel(len(data))
        return data


def register() -> None:
    """Make ``far://`` known to fsspec."""
    register_implementation(PROTOCOL, FarFileSystem, clobber=True)
