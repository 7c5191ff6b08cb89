"""How a client finds the conductor of a state directory, and why stale files never bite."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import Corrupt, Unavailable
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.engines.process import has_ended, process_start_time

DAEMON_FILE = "daemon.json"
LOG_FILE = "conductor.log"
LIFE_LOCK = "conductor.lock"
START_LOCK = "conductor.start.lock"


class DaemonFile(msgspec.Struct, frozen=True):
    """What ``daemon.json`` holds; mode 0600, because the token opens everything."""

    pid: int
    start_time: str
    url: str
    token: str
    version: str


def read_daemon_file(root: Path) -> DaemonFile | None:
    """The file as written, or None when it is absent or not readable (it is then stale)."""
    try:
        return from_json((root / DAEMON_FILE).read_bytes(), DaemonFile, what=DAEMON_FILE)
    except (FileNotFoundError, Corrupt):
        return None


def find_daemon(root: Path) -> DaemonFile | None:
    """The running conductor's file; None unless its very process is still alive."""
    found = read_daemon_file(root)
    if found is None or has_ended(found.pid, found.start_time):
        return None
    return found


def publish_daemon_file(root: Path, daemon: DaemonFile) -> None:
    """Tell clients where the conductor listens."""
    write_private(root / DAEMON_FILE, to_json(daemon))


def remove_daemon_file(root: Path, *, pid: int | None = None) -> None:
    """Remove the file; with ``pid``, only when it is (still) that process's own."""
    found = read_daemon_file(root)
    if pid is None or (found is not None and found.pid == pid):
        (root / DAEMON_FILE).unlink(missing_ok=True)


def try_lock(path: Path) -> int | None:
    """Take an exclusive file lock at once; the descriptor holds it until closed or the end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def start_lock(root: Path, *, deadline_s: float = 90.0) -> Iterator[None]:
    """Let only one client at a time start a conductor.

    Raises:
        Unavailable: Another client has been starting one for longer than ``deadline_s``.
    """
    until = time.monotonic() + deadline_s
    descriptor = try_lock(root / START_LOCK)
    while descriptor is None:
        if time.monotonic() > until:
            raise Unavailable(
                f"another program has been starting the conductor for {deadline_s:.0f} s; "
                f"look into {root / LOG_FILE} and try again"
            )
        time.sleep(0.05)
        descriptor = try_lock(root / START_LOCK)
    try:
        yield
    finally:
        os.close(descriptor)


class LockOwner(msgspec.Struct, frozen=True):
    """Who holds the life lock: written into the lock file by its holder."""

    pid: int
    start_time: str


def take_life_lock(root: Path) -> int | None:
    """Become the one conductor of a state directory; None when there is one already."""
    descriptor = try_lock(root / LIFE_LOCK)
    if descriptor is None:
        return None
    owner = LockOwner(pid=os.getpid(), start_time=process_start_time(os.getpid()) or "")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, to_json(owner), 0)
    return descriptor


def lock_owner(root: Path) -> LockOwner | None:
    """The living conductor of a state directory, whatever its ``daemon.json`` says."""
    try:
        owner = from_json((root / LIFE_LOCK).read_bytes(), LockOwner, what=LIFE_LOCK)
    except (FileNotFoundError, Corrupt):
        return None
    return None if has_ended(owner.pid, owner.start_time) else owner


def log_tail(root: Path, num_lines: int = 5) -> str:
    """The last lines of the conductor's log, for an error message."""
    try:
        lines = (root / LOG_FILE).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return " / ".join(line.strip() for line in lines[-num_lines:] if line.strip())
