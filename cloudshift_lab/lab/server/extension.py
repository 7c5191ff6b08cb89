"""The extension application Jupyter loads: routes, the event schema and the follower task."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_events import EventLogger
from jupyter_server.extension.application import ExtensionApp

from cloudshift_lab.core.home import home
from cloudshift_lab.lab.server import announce, handlers, proxy
from cloudshift_lab.lab.server.link import ConductorLink


class CloudshiftServer(ExtensionApp):
    """Serves ``{base}cloudshift/`` and announces the conductor's changes on the event bus."""

    name = "cloudshift_lab"

    _follower: asyncio.Task[None] | None = None

    def initialize_settings(self) -> None:
        self.link = ConductorLink(home().absolute())
        self._events().register_event_schema(announce.CHANGED_SCHEMA)

    def initialize_handlers(self) -> None:
        self.handlers.extend(handlers.routes(self.link))
        self.handlers.extend(proxy.routes(self.link.root))

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:  # noqa: ARG002
        self._follower = asyncio.create_task(announce.follow(self.link, self._announce))
        self._follower.add_done_callback(self._follower_ended)

    async def stop_extension(self) -> None:
        """End the follower and drop the line; conductor, runs and dashboard go on."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        self.link.close()

    def _announce(self, version: int, online: bool) -> None:  # noqa: FBT001
        self._events().emit(
            schema_id=announce.CHANGED_SCHEMA_ID, data={"version": version, "online": online}
        )

    def _events(self) -> EventLogger:
        assert self.serverapp is not None, "Jupyter links the server before it starts extensions"
        logger = self.serverapp.event_logger
        assert logger is not None, "every Jupyter server has an event bus"
        return logger

    def _follower_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.log.error("cloudshift: events stopped, pages only poll", exc_info=task.exception())
