"""Changes reach open pages through Jupyter's event bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from cloudshift_lab.lab.server.announce import CHANGED_SCHEMA_ID

DEADLINE_S = 60


async def next_event(
    socket: Any, wanted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:  # fmt: skip
    """The next of our events that is wanted; others are skipped."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            message = await socket.read_message()
            assert message is not None, "the event bus closed"
            event: dict[str, Any] = json.loads(message)
            if event.get("schema_id") == CHANGED_SCHEMA_ID and wanted(event):
                return event


async def test_a_change_in_the_conductor_is_an_event_in_the_page(
    jp_ws_fetch: Any, jp_serverapp: Any, conductor: Any
) -> None:
    await jp_serverapp.extension_manager.start_all_extensions()
    socket = await jp_ws_fetch("api", "events", "subscribe")
    before = conductor.service.version()
    conductor.service.touch()
    event = await next_event(socket, lambda e: e["version"] > before)
    assert event["online"] is True
    socket.close()


async def test_coming_and_going_of_the_conductor_are_events(
    jp_ws_fetch: Any, jp_serverapp: Any, start_conductor: Callable[[], Any]
) -> None:
    await jp_serverapp.extension_manager.start_all_extensions()
    socket = await jp_ws_fetch("api", "events", "subscribe")
    first = start_conductor()
    await next_event(socket, lambda e: e["online"])
    await asyncio.get_running_loop().run_in_executor(None, first.close)
    await next_event(socket, lambda e: not e["online"])
    second = start_conductor()
    event = await next_event(socket, lambda e: e["online"])
    assert event["version"] == second.service.version()
    socket.close()
