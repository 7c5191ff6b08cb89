"""``{base}cloudshift/dashboard/...``: the Panel process behind Jupyter's login and origin check."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

from jupyter_server_proxy.handlers import AddSlashHandler, LocalProxyHandler
from tornado import web
from tornado.simple_httpclient import HTTPTimeoutError

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.lab.dashboard.launch import DashboardFile, ensure_dashboard

_HOST = "127.0.0.1"
_WEBSOCKET_TRIES = 4
_PRIVATE_HEADERS = ("Cookie", "Authorization", "X-Xsrftoken")


class DashboardProxy(LocalProxyHandler):  # type: ignore[misc]
    """Forwards pages, static files and the websocket; starts the dashboard on the first request."""

    def initialize(self, root: Path) -> None:
        self.root = root
        self.proxy_base = "cloudshift/dashboard"

    async def http_get(self, path: str) -> None:
        """A page or a static file."""
        await self.forward(path)

    async def open(self, path: str) -> None:
        """The page's websocket."""
        dashboard = await self.dashboard()
        for patience in range(_WEBSOCKET_TRIES, 0, -1):
            try:
                await self.proxy_open(_HOST, dashboard.port, self.inner_path(dashboard, path))
                return
            except HTTPTimeoutError:  # a busy machine: the page is still waiting
                if patience == 1:
                    raise

    def write_message(
        self,
        message: bytes | str | dict[str, Any],
        binary: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """To the browser, unless its page was closed meanwhile."""
        if self.ws_connection is None or self.ws_connection.is_closing():
            self.on_close()
            return _done()
        return super().write_message(message, binary)

    async def forward(self, path: str) -> None:
        dashboard = await self.dashboard()
        inner = self.inner_path(dashboard, path)
        await super(LocalProxyHandler, self).proxy(_HOST, dashboard.port, inner)

    async def dashboard(self) -> DashboardFile:
        start = functools.partial(ensure_dashboard, self.root)
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, start)
        except CloudshiftError as error:
            raise web.HTTPError(503, error.message) from error
        self._origin = f"http://{_HOST}:{found.port}"
        return found

    def inner_path(self, dashboard: DashboardFile, path: str) -> str:
        return f"/{dashboard.prefix}/{path}"

    def proxy_request_headers(self) -> dict[str, str]:
        """The browser's headers without Jupyter's secrets; the origin has been checked already."""
        headers: dict[str, str] = super().proxy_request_headers()
        for name in _PRIVATE_HEADERS:
            headers.pop(name, None)
        if "Origin" in headers:
            headers["Origin"] = self._origin
        return headers

    def refuse(self, *_: Any) -> None:
        """The dashboard only reads."""
        raise web.HTTPError(405)

    post = put = delete = head = patch = options = refuse


def _done() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def routes(root: Path) -> list[tuple[Any, ...]]:
    """The dashboard's routes; Jupyter puts its base URL before them."""
    place = "/cloudshift/dashboard"
    return [
        (f"{place}/(.*)", DashboardProxy, {"root": root}),
        (place, AddSlashHandler),
    ]
