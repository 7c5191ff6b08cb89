"""The Jupyter server's line to the conductor: asynchronous, and honest when nobody answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.conductor.discovery import DaemonFile, find_daemon
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.views import Changes
from cloudshift_lab.core.wire import from_json

_CONNECT_S = 5.0
_READ_S = 20.0
_ACT_S = 150.0
_WRONG_TOKEN = 401


class Reply(msgspec.Struct, frozen=True):
    """The conductor's answer as it came: a JSON body, also for problems."""

    status: int
    body: bytes


class ConductorLink:
    """Calls the conductor of one state directory, wherever it listens at the moment.

    Args:
        root: The state directory.

    Invariant: ``offline_since`` is None exactly while the last call reached a conductor.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.offline_since: float | None = time.time()
        self._http = AsyncHTTPClient(force_instance=True, max_clients=64)
        self._starting: asyncio.Lock = asyncio.Lock()

    def close(self) -> None:
        """Drop all connections."""
        self._http.close()

    def identity(self) -> DaemonFile | None:
        """Which conductor runs now; changes with every restart, None when none runs."""
        return find_daemon(self.root)

    async def read(self, path: str, query: str = "") -> Reply:
        """Forward a GET; never starts a conductor.

        Raises:
            Unavailable: None runs, or it does not answer.
        """
        return await self._fetch("GET", path, query=query, timeout_s=_READ_S)

    async def act(self, path: str, body: bytes) -> Reply:
        """Forward a POST, starting a conductor first where none runs.

        Raises:
            Unavailable: It does not start or does not answer; the outcome may be unknown.
        """
        if self.identity() is None:
            await self.start()
        return await self._fetch("POST", path, body=body, timeout_s=_ACT_S)

    async def changes(self, since: int, timeout_s: float) -> Changes:
        """Wait for the conductor's next change, at most ``timeout_s``.

        Raises:
            Unavailable: None runs, or it went away meanwhile.
        """
        query = f"since={since}&timeout={timeout_s}"
        reply = await self._fetch("GET", "changes", query=query, timeout_s=timeout_s + _READ_S)
        if reply.status != 200:
            raise Unavailable(f"the conductor answered {reply.status}; it will be asked again")
        return from_json(reply.body, Changes, what="the conductor's answer")

    async def start(self) -> None:
        """Start a conductor unless one runs; waits until it answers.

        Raises:
            Unavailable: It does not come up.
        """
        async with self._starting:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, Client.connect, self.root)

    async def _fetch(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes | None = None,
        timeout_s: float,
    ) -> Reply:
        daemon = self.identity()
        if daemon is None:
            raise self._lost("no conductor runs")
        url = f"{daemon.url}/v1/{path}" + (f"?{query}" if query else "")
        request = HTTPRequest(
            url,
            method=method,
            body=body,
            headers={
                "Authorization": f"Bearer {daemon.token}",
                "Content-Type": "application/json",
            },
            connect_timeout=_CONNECT_S,
            request_timeout=timeout_s,
            follow_redirects=False,
        )
        try:
            answer = await self._http.fetch(request, raise_error=False)
        except (OSError, HTTPClientError) as error:
            raise self._lost(f"the conductor does not answer ({error})") from error
        if answer.code == _WRONG_TOKEN:
            raise self._lost("the conductor is restarting")
        self.offline_since = None
        return Reply(status=answer.code, body=answer.body)

    def _lost(self, why: str) -> Unavailable:
        if self.offline_since is None:
            self.offline_since = time.time()
        since = time.strftime("%H:%M:%S", time.localtime(self.offline_since))
        return Unavailable(
            f"{why}; offline since {since}, retrying. "
            "Runs go on without it; start it with: python -m cloudshift_lab status"
        )
