"""The conductor's process: one per state directory, found through a private file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from cloudshift_lab import __version__
from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.fortune import Fortune
from cloudshift_lab.conductor.http import MAX_BODY_BYTES, Gate, application
from cloudshift_lab.conductor.service import ConductorService
from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.home import open_home
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines.local import LocalEngine
from cloudshift_lab.engines.process import process_start_time

_LOOK_AT_FILE_EVERY_S = 1.0
_LAST_ANSWERS_S = 0.3
ALREADY_RUNS = 3


def main(argv: list[str] | None = None) -> int:
    """Run a conductor until SIGTERM or ``POST /v1/shutdown``.

    Returns:
        0 after a graceful end, 3 when another conductor has this state directory, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m cloudshift_lab.conductor", description=__doc__)
    parser.add_argument("--home", required=True, help="state directory")
    try:
        root = open_home(Path(parser.parse_args(argv).home))
    except UsageError as error:
        print(error.message, file=sys.stderr)
        return 1
    if discovery.take_life_lock(root) is None:
        owner = discovery.lock_owner(root)
        pid = "unknown" if owner is None else owner.pid
        print(f"a conductor runs for {root} already (pid {pid}); use that one", file=sys.stderr)
        return ALREADY_RUNS
    try:
        asyncio.run(_serve(root))
    except CloudshiftError as error:
        print(error.message, file=sys.stderr, flush=True)
        return 1
    return 0


async def _serve(root: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = ConductorService(root, LocalEngine(root), REAL_WORLD, fortune=Fortune())
    token = secrets.token_urlsafe(32)
    gate = Gate(service, token, shutdown=stop.set)
    server = HTTPServer(application(gate), max_body_size=MAX_BODY_BYTES)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    daemon = discovery.DaemonFile(
        pid=os.getpid(),
        start_time=process_start_time(os.getpid()) or "",
        url=f"http://127.0.0.1:{sockets[0].getsockname()[1]}",
        token=token,
        version=__version__,
    )
    service.start()
    try:
        await _stay(root, daemon, stop)
    finally:
        discovery.remove_daemon_file(root, pid=daemon.pid)
        server.stop()
        await asyncio.sleep(_LAST_ANSWERS_S)
        gate.close()
        service.close()


async def _stay(root: Path, daemon: discovery.DaemonFile, stop: asyncio.Event) -> None:
    """Wait for the end; write our file again whenever it was damaged or removed meanwhile."""
    while not stop.is_set():
        if discovery.read_daemon_file(root) != daemon:
            discovery.publish_daemon_file(root, daemon)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK_AT_FILE_EVERY_S)


def run() -> None:
    """Process entry. Threads that wait for a store that hangs must not hold up the end.

    What the conductor writes is its owner's alone, whatever the caller's mask: journals and logs
    hold the environment of runs. Agents inherit the mask.
    """
    os.umask(0o077)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
