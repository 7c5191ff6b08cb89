"""Tells open browser pages through Jupyter's event bus that something changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloudshift_lab.conductor.discovery import DaemonFile
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.lab.server.link import ConductorLink

CHANGED_SCHEMA_ID = "https://cloudshift-lab.dev/events/changed/v1"
CHANGED_SCHEMA: dict[str, object] = {
    "$id": CHANGED_SCHEMA_ID,
    "version": "1",
    "title": "CloudShift changed",
    "description": "Something about runs or migrations changed; fetch them again.",
    "type": "object",
    "properties": {
        "version": {"type": "integer", "description": "The conductor's change counter."},
        "online": {"type": "boolean", "description": "Whether a conductor answers."},
    },
    "required": ["version", "online"],
    "additionalProperties": False,
}
_WAIT_S = 25.0
_RETRY_S = 1.0
_MIN_GAP_S = 0.3

Announce = Callable[[int, bool], None]


async def follow(link: ConductorLink, announce: Announce) -> None:
    """Announce every change of version, and each coming and going of a conductor; never returns.

    Args:
        link: The line to the conductor.
        announce: Called with the version and whether a conductor answers.
    """
    known: DaemonFile | None = None
    version = -1
    while True:
        current = link.identity()
        if current != known:  # a new conductor counts from the start again
            known, version = current, -1
        try:
            change = await link.changes(since=version, timeout_s=_WAIT_S)
        except Unavailable:
            if version != -2:
                announce(max(version, 0), False)  # noqa: FBT003
            version, known = -2, None
            await asyncio.sleep(_RETRY_S)
            continue
        if change.version != version:
            version = change.version
            announce(version, True)  # noqa: FBT003
            await asyncio.sleep(_MIN_GAP_S)  # many changes at once are one event
