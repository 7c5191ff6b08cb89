"""Starting a conductor in its own session, in place of one that cannot be used any more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cloudshift_lab import __version__
from cloudshift_lab.conductor import discovery
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.engines.process import environment, has_ended

C = TypeVar("C")
Attach = Callable[[Path], C | None]
"""Finds the running, answering conductor of a state directory; None when there is none."""
_START_DEADLINE_S = 45.0
_DISMISS_PATIENCE_S = (15.0, 5.0)


def start(root: Path, attach: Attach[C]) -> C:
    """The conductor of a state directory, started if need be.

    Args:
        root: State directory.
        attach: Finds a running one.

    Raises:
        Unavailable: It does not come up, or the old one does not end.
    """
    with discovery.start_lock(root):
        found = attach(root) or _await_republished(root, attach)
        if found is not None:
            return found
        _dismiss(root)
        discovery.remove_daemon_file(root)
        return _spawn(root, attach)


def _await_republished(root: Path, attach: Attach[C], *, patience_s: float = 4.0) -> C | None:
    """Give a living conductor whose file was damaged the moment it needs to write it again."""
    until = time.monotonic() + patience_s
    owner = discovery.lock_owner(root)
    while owner is not None and time.monotonic() < until:
        daemon = discovery.find_daemon(root)
        if daemon is not None and daemon.version != __version__:
            return None
        client = attach(root)
        if client is not None:
            return client
        time.sleep(0.1)
        owner = discovery.lock_owner(root)
    return None


def _dismiss(root: Path) -> None:
    """End a conductor that is not usable (another version, or a hung one) before a new one.

    Only the process that holds this directory's life lock is ever signalled: a pid that was
    given to another program is left alone.
    """
    owner = discovery.lock_owner(root)
    if owner is None:
        return
    signals = (signal.SIGTERM, signal.SIGKILL)
    for number, patience_s in zip(signals, _DISMISS_PATIENCE_S, strict=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, number)
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if has_ended(owner.pid, owner.start_time):
                return
            time.sleep(0.05)
    raise Unavailable(f"the old conductor (pid {owner.pid}) does not end; end it and try again")


def _spawn(root: Path, attach: Attach[C]) -> C:
    """Start a conductor in its own session, its output in ``conductor.log``, and wait for it."""
    log = os.open(root / discovery.LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloudshift_lab.conductor", "--home", str(root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=root,
            env=environment(),
        )
    finally:
        os.close(log)
    # collected should it end before us, so that it never lingers as a zombie
    threading.Thread(target=process.wait, name="conductor-reaper", daemon=True).start()
    until = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < until:
        client = attach(root)
        if client is not None:
            return client
        if process.poll() is not None:
            raise Unavailable(
                f"the conductor did not start ({discovery.log_tail(root) or 'no output'}); "
                f"mend that, then try again (log: {root / discovery.LOG_FILE})"
            )
        time.sleep(0.05)
    raise Unavailable(
        f"the conductor did not answer within {_START_DEADLINE_S:.0f} s of its start; "
        f"look into {root / discovery.LOG_FILE} and try again"
    )
