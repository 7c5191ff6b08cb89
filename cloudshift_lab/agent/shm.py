"""The directory in shared memory that one agent owns: made at its start, gone at its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from cloudshift_lab.core.errors import Conflict, Denied

LOCK_FILE = "agent.lock"
_SHARED_MEMORY = Path("/dev/shm")
_MAX_SOCKET_PATH = 100


class NodeDir:
    """``/dev/shm/cloudshift-<uid>-<home>-<run>-<generation>[.<node>]``, private to its user.

    Held by a file lock, so that one whose agent died is told from one in use. Run ids are unique
    in one state directory only, hence its hash in the name.

    Args:
        home: The state directory of the run's conductor.
        run_id: Of the attempt.
        generation: Of the attempt.
        node: Which node of the attempt; several may be on one machine.
        base: Where such directories are; shared memory where the system has it.

    Raises:
        Conflict: Another agent of this very attempt is alive.
        Denied: The place belongs to another user.
    """

    def __init__(
        self, home: str, run_id: str, generation: int, *, node: int = 0, base: Path | None = None
    ) -> None:
        base = base or default_base()
        with _one_at_a_time(base):
            remove_stale(base)
            part = f".{node}" if node else ""
            self.path, self._lock = _take(base, home, run_id, f"{generation}{part}")
        self.clear()

    def clear(self) -> None:
        """Remove everything in it but the lock."""
        for entry in self.path.iterdir():
            if entry.name != LOCK_FILE:
                entry.unlink(missing_ok=True)

    def remove(self) -> None:
        """Give the memory back."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _take(base: Path, home: str, run_id: str, part: str) -> tuple[Path, int]:
    place = blake3(home.encode()).hexdigest()[:8]
    name = f"cloudshift-{os.getuid()}-{place}-{run_id}-{part}"
    room = _MAX_SOCKET_PATH - len(str(base)) - len("/rows.sock/")
    path = base / (name if len(name) <= room else name[:20] + name[-(room - 20) :])
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise Denied(f"{path} belongs to another user; remove it or use another machine")
    lock = _try_lock(path / LOCK_FILE)
    if lock is None:
        raise Conflict(f"run {run_id}, generation {part} has an agent here; stop that first")
    return path, lock


@contextlib.contextmanager
def _one_at_a_time(base: Path) -> Iterator[None]:
    """Between a directory's making and its locking nobody may take it for stale."""
    lock = base / f"cloudshift-{os.getuid()}.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def default_base() -> Path:
    """Shared memory, or the ordinary place for temporary files."""
    return _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def remove_stale(base: Path) -> None:
    """Remove directories of this user's agents that are dead."""
    mine = re.compile(rf"cloudshift-{os.getuid()}-.+")
    for path in base.iterdir():
        if not mine.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
            continue
        lock = _try_lock(path / LOCK_FILE)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
