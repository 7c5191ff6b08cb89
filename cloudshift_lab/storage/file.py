"""A store in a folder of this machine (or a shared disk), with atomic create by hard link."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cloudshift_lab.core.errors import (
    CloudshiftError,
    Denied,
    Exhausted,
    NotFound,
    Unavailable,
    Unsupported,
    UsageError,
)
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.fanout import fan_out, fan_out_each
from cloudshift_lab.storage.keys import check_key, check_range, under
from cloudshift_lab.storage.store import Blob, Request, check_create_size

_LEFTOVER_S = 86_400.0
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_BLOCK_BYTES, _LARGE_BYTES = 4096, 2**20
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})


class FileStore:
    """Objects as files below one folder.

    A write goes to a hidden file first, is flushed to the disk, and appears under its name in one
    step: a rename for put, a hard link for create, which fails if the name is taken.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._root = Path(self.url.removeprefix("file://"))
        self._hidden = self._root / ".tmp"
        self._is_swept = False
        if not self._root.is_absolute():
            raise UsageError(f"{url} is not absolute; write file:///folder with three slashes")

    def __repr__(self) -> str:
        return f"FileStore({self.url!r})"

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        first, last = check_range(start, end)
        with self._explained("read", key), self._path(key).open("rb") as file:
            file.seek(first)
            return file.read() if last is None else file.read(last - first)

    def put(self, key: str, data: Blob) -> None:
        path = self._path(key)
        with self._explained("write", key), self._written(data) as temporary:
            _make_parent(path)
            temporary.replace(path)
            _flush_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        check_create_size(data)
        path = self._path(key)
        with self._explained("create", key), self._written(data) as temporary:
            _make_parent(path)
            return self._link(temporary, path) or path.read_bytes() == data

    def size(self, key: str) -> int | None:
        try:
            with self._explained("look at", key):
                return self._path(key).stat().st_size
        except NotFound:
            return None

    def list(self, prefix: str) -> list[str]:
        start = under(prefix)
        with self._explained("list", prefix):
            return sorted(key for key in self._walk(start) if key.startswith(start))

    def delete(self, key: str) -> None:
        with suppress(NotFound), self._explained("delete", key):
            self._path(key).unlink()

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        return fan_out(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        return fan_out_each(lambda r: self.get(r[0], start=r[1], end=r[2]), requests, concurrency)

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        fan_out(lambda item: self.put(*item), objects.items(), concurrency)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, prefix: str) -> Iterator[str]:
        for folder, folders, names in os.walk(self._root / prefix, onerror=_unless_absent):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                yield (Path(folder) / name).relative_to(self._root).as_posix()

    @contextmanager
    def _written(self, data: Blob) -> Iterator[Path]:
        """A flushed hidden file with ``data``; gone afterwards unless it was renamed."""
        self._hidden.mkdir(parents=True, exist_ok=True)
        self._sweep()
        temporary = self._hidden / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                body = memoryview(data)
                file.seek(_write_past_cache(temporary, body))
                file.write(body[file.tell() :])
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Once per store: what a killed writer left behind a day ago or earlier goes."""
        if self._is_swept:
            return
        self._is_swept = True
        oldest = REAL_WORLD.now() - _LEFTOVER_S
        for entry in self._hidden.iterdir():
            with suppress(FileNotFoundError):  # its writer, or another sweep, was faster
                if entry.stat().st_mtime < oldest:
                    entry.unlink()

    def _link(self, temporary: Path, path: Path) -> bool:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise Unsupported(
                    f"{self.url} lies on a disk without hard links, so create-if-absent is "
                    "not safe there; use a folder on a local disk"
                ) from error
            raise
        _flush_folder(path.parent)
        return True

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explain(verb, key, error) from error

    def _explain(self, verb: str, key: str, error: OSError) -> CloudshiftError:
        what = f"cannot {verb} {self.url}/{key} ({os.strerror(error.errno or 0)})"
        if error.errno in _ABSENT and verb in ("read", "look at", "delete"):
            return NotFound(f"{self.url}/{key} does not exist; check the name", key=key)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return Denied(f"{what}; make the folder writable for this user", url=self.url)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Exhausted(f"{what}; free space or choose another store", url=self.url)
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            return UsageError(f"{what}; give the store a folder of its own")
        return Unavailable(f"{what}; check the disk, then try again", url=self.url)


def _unless_absent(error: OSError) -> None:
    if error.errno not in _ABSENT:
        raise error


def _write_past_cache(path: Path, body: memoryview) -> int:
    """Write the whole blocks of a large body straight to the disk; the bytes that it took.

    The copy into the page cache costs more processor time than any other part of a save, and
    takes memory from training. Disks and buffers that do not allow it take nothing.
    """
    whole = len(body) // _BLOCK_BYTES * _BLOCK_BYTES
    if whole < _LARGE_BYTES or not _DIRECT:
        return 0
    done = 0
    try:
        descriptor = os.open(path, os.O_WRONLY | _DIRECT)
        try:
            while done < whole:
                done += os.write(descriptor, body[done:whole])
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
    return done


def _make_parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
