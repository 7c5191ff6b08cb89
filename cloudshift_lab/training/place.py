"""The shared memory of one rank that saves without an agent, held by a lock while it lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from blake3 import blake3

from cloudshift_lab.core.errors import Conflict, Denied

_LOCK_FILE = "agent.lock"
_SHARED_MEMORY = Path("/dev/shm")
_held: dict[Path, int] = {}


class Place:
    """``/dev/shm/cloudshift-<uid>-save-<hash>-<rank>``: private, gone at the end.

    Agents that clean up after dead ones know it by its lock, as they know their own.

    Args:
        url: The store.
        run_id: Whose state is staged here.
        rank: Of this process.

    Raises:
        Conflict: Another process of this machine saves this run.
        Denied: The place belongs to another user.
    """

    def __init__(self, url: str, run_id: str, rank: int) -> None:
        base = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        which = blake3(f"{url}\n{run_id}".encode()).hexdigest()[:16]
        self.path = base / f"cloudshift-{os.getuid()}-save-{which}-{rank}"
        self.path.mkdir(mode=0o700, exist_ok=True)
        if self.path.is_symlink() or self.path.stat().st_uid != os.getuid():
            raise Denied(f"{self.path} belongs to another user; remove it or use another machine")
        self._lock = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise Conflict(_taken(self.path, f"run '{run_id}' (rank {rank}) to {url}")) from error
        _held[self.path] = self._lock
        for entry in self.path.iterdir():
            if entry.name != _LOCK_FILE:
                entry.unlink(missing_ok=True)

    def remove(self) -> None:
        """Give the memory back."""
        if _held.pop(self.path, None) is None:
            return  # a forked child: the place is its parent's
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _taken(path: Path, what: str) -> str:
    if path in _held:
        return (
            f"another CheckpointManager of this process saves {what}; call its close(), use that "
            "one, or restart the notebook's kernel"
        )
    return f"another process on this machine saves {what}; stop it, or save under another run id"


def _let_go() -> None:
    """In a forked child, a loader's for example: a lock that it holds would outlive the parent."""
    for lock in _held.values():
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
