"""Finds the dashboard process of a state directory, or starts it; needs no Panel itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from cloudshift_lab import __version__
from cloudshift_lab.conductor.discovery import try_lock
from cloudshift_lab.core.errors import Corrupt, Unavailable
from cloudshift_lab.core.home import home, write_private
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.engines.process import environment, process_start_time

STATE_FILE = "dashboard.json"
LOCK_FILE = "dashboard.lock"
LOG_FILE = "dashboard.log"
_START_DEADLINE_S = 120.0
_LOOK_S = 0.1


class DashboardFile(msgspec.Struct, frozen=True):
    """Where the dashboard listens; mode 0600, because the prefix is its password."""

    pid: int
    start_time: str
    port: int
    prefix: str
    version: str

    @property
    def url(self) -> str:
        """What a browser on this machine opens where there is no Jupyter server."""
        return f"http://127.0.0.1:{self.port}/{self.prefix}/"


def find_dashboard(root: Path) -> DashboardFile | None:
    """The running dashboard of a state directory; None unless its very process still lives."""
    try:
        found = from_json((root / STATE_FILE).read_bytes(), DashboardFile, what=STATE_FILE)
    except (FileNotFoundError, Corrupt):
        return None
    return found if process_start_time(found.pid) == found.start_time else None


def publish_dashboard(root: Path, *, port: int, prefix: str) -> None:
    """Write this process down as the state directory's dashboard."""
    start_time = process_start_time(os.getpid())
    assert start_time is not None, "this process runs"
    state = DashboardFile(os.getpid(), start_time, port, prefix, __version__)
    write_private(root / STATE_FILE, to_json(state))


def is_published(root: Path) -> bool:
    """Whether this process is (still) the state directory's dashboard."""
    found = find_dashboard(root)
    return found is not None and found.pid == os.getpid()


def ensure_dashboard(root: Path | None = None) -> DashboardFile:
    """The dashboard of a state directory, started in its own session where none runs.

    Blocks while it starts (5 to 30 s); call it in a thread from asynchronous code.

    Args:
        root: State directory; ``core.home.home()`` when None.

    Raises:
        Unavailable: It does not come up; names the log.
    """
    place = (root or home()).absolute()
    found = find_dashboard(place)
    if found is not None and found.version == __version__:
        return found
    deadline = time.monotonic() + _START_DEADLINE_S
    descriptor = try_lock(place / LOCK_FILE)
    while descriptor is None:
        if time.monotonic() > deadline:
            raise _not_started(place, "another program has been starting it for too long")
        time.sleep(_LOOK_S)
        descriptor = try_lock(place / LOCK_FILE)
    try:
        found = find_dashboard(place)
        if found is not None and found.version == __version__:
            return found
        if found is not None:
            os.kill(found.pid, signal.SIGTERM)
        return _spawn(place, deadline)
    finally:
        os.close(descriptor)


def stop_dashboard(root: Path) -> bool:
    """Ask a running dashboard to end; False when none runs."""
    found = find_dashboard(root)
    if found is None:
        return False
    os.kill(found.pid, signal.SIGTERM)
    return True


def _spawn(root: Path, deadline: float) -> DashboardFile:
    log = os.open(root / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloudshift_lab.lab.dashboard", "--home", str(root)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=root,
        )
    finally:
        os.close(log)
    threading.Thread(target=process.wait, name="dashboard-reaper", daemon=True).start()
    while time.monotonic() < deadline:
        found = find_dashboard(root)
        if found is not None and found.pid == process.pid:
            return found
        if process.poll() is not None:
            raise _not_started(root, f"it ended with code {process.returncode}")
        time.sleep(_LOOK_S)
    process.terminate()
    raise _not_started(root, f"it did not answer within {_START_DEADLINE_S:.0f} s")


def _not_started(root: Path, why: str) -> Unavailable:
    return Unavailable(f"the dashboard did not start: {why}; see {root / LOG_FILE} and try again")
