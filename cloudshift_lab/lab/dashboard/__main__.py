"""``python -m cloudshift_lab.lab.dashboard --home DIR [--port P] [--prefix PATH]``."""

from __future__ import annotations

import argparse
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import panel

from cloudshift_lab.core.home import home
from cloudshift_lab.lab.dashboard.feed import Feed
from cloudshift_lab.lab.dashboard.launch import STATE_FILE, is_published, publish_dashboard
from cloudshift_lab.lab.dashboard.page import session_page

pn: Any = panel  # has no types

_IDLE_S = 600.0
_LOOK_S = 5.0
_UNUSED_MS = 600_000  # on a busy machine a page's websocket may follow minutes later


class IdleExit:
    """Ends the process when no page has been open for a while, or another dashboard took over."""

    def __init__(self, server: Any, root: Path, idle_s: float) -> None:
        self._server = server
        self._root = root
        self._idle_s = idle_s
        self._busy_at = time.monotonic()

    def look(self) -> None:
        """Called every few seconds on the server's loop."""
        now = time.monotonic()
        if self._server.get_sessions():
            self._busy_at = now
        if now - self._busy_at > self._idle_s or not is_published(self._root):
            self._server.io_loop.stop()


def serve(root: Path, *, port: int, prefix: str, idle_s: float) -> None:
    """Serve the dashboard on loopback until it is idle or told to end.

    Args:
        root: State directory.
        port: TCP port, 0 for any free one.
        prefix: Path below which everything lives; who does not know it sees nothing.
        idle_s: Seconds without an open page after which the process ends.
    """
    pn.extension("plotly")
    pn.pane.Plotly({"data": [], "layout": {}})  # imports plotly now, not while a page waits
    feed = Feed(root)
    feed.start()
    server = pn.serve(
        {"/": lambda: session_page(feed)},
        port=port,
        address="127.0.0.1",
        prefix=f"/{prefix}",
        websocket_origin="*",  # the prefix is the key; Jupyter checks origins before us
        title="CloudShift",
        show=False,
        start=False,
        verbose=False,
        unused_session_lifetime_milliseconds=_UNUSED_MS,
        admin=False,
    )
    server.start()
    publish_dashboard(root, port=server.port, prefix=prefix)
    idle = IdleExit(server, root, idle_s)
    pn.state.schedule_task("idle", idle.look, period=f"{_LOOK_S:.0f}s")
    signal.signal(signal.SIGTERM, lambda *_: server.io_loop.add_callback_from_signal(_stop, server))
    try:
        server.io_loop.start()
    finally:
        feed.close()
        if is_published(root):
            (root / STATE_FILE).unlink(missing_ok=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m cloudshift_lab.lab.dashboard")
    parser.add_argument("--home", type=Path, default=None, help="state directory")
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: any free one)")
    parser.add_argument("--prefix", default=None, help="secret path (default: a random one)")
    parser.add_argument("--idle-s", type=float, default=_IDLE_S, help="end after so long unused")
    given = parser.parse_args()
    prefix = (given.prefix or secrets.token_urlsafe(18)).strip("/")
    serve((given.home or home()).absolute(), port=given.port, prefix=prefix, idle_s=given.idle_s)


def _stop(server: Any) -> None:
    server.io_loop.stop()


if __name__ == "__main__":
    main()
