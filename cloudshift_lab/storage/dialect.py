"""What a cloud's client library must be told and asked: one attempt each, no retries of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

CONNECT_TIMEOUT_S = 3.0
IDLE_TIMEOUT_S = 4.0

Verdict = Literal["absent", "exists", "denied", "beyond", "full", "refused", "again", "busy"]
"""What an error means: ``beyond`` the object's end, ``refused`` for good, or try ``again``; after
``busy`` more slowly, since the store asked for that and sent nothing."""

_SECRET_NAME = re.compile(r"key|secret|token|password|credential|connection_string|sas", re.I)
_SECRET_PART = re.compile(r"\b(?:AccountKey|sig)=([^;&\s]+)", re.I)
_SHORTEST_SECRET = 4


class Dialect(Protocol):
    """One cloud's object calls. Coroutines run on ``loop`` and may raise any of ``errors``."""

    loop: asyncio.AbstractEventLoop
    errors: tuple[type[Exception], ...]

    def build(self) -> None:
        """Make the client in the caller's thread; may take a second and look for credentials."""

    async def connect(self) -> None:
        """Open its session."""

    async def get(self, key: str, start: int, end: int | None) -> bytes:
        """Bytes of an object."""

    async def put(self, key: str, data: bytes) -> None:
        """Write or replace."""

    async def create(self, key: str, data: bytes) -> None:
        """Write only if absent, else raise what ``judge`` calls ``exists``."""

    async def size(self, key: str) -> int:
        """Bytes of an object, or raise what ``judge`` calls ``absent``."""

    async def find(self, prefix: str) -> list[str]:
        """All keys that begin with ``prefix``."""

    async def delete(self, key: str) -> None:
        """Remove; may raise ``absent``."""

    def judge(self, error: Exception) -> Verdict:
        """What an error means."""


def verdict_of_status(status: int) -> Verdict:
    """What an HTTP status means; what may pass by itself is ``again`` or ``busy``."""
    if status in (401, 403):
        return "denied"
    by_status: dict[int, Verdict] = {
        404: "absent", 412: "exists", 416: "beyond", 429: "busy", 503: "busy", 507: "full",
    }  # fmt: skip
    transient = status >= 500 or status in (408, 409, 425, 429) or status < 400
    return by_status.get(status, "again" if transient else "refused")


def secrets_in(options: object, *, hidden: bool = False) -> Iterator[str]:
    """Every string in ``options`` whose name sounds like a credential, at any depth.

    Of a connection string and a signed address also the part that is the secret: that part may
    be repeated alone.
    """
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from secrets_in(value, hidden=hidden or bool(_SECRET_NAME.search(str(name))))
    elif hidden and isinstance(options, str) and len(options) >= _SHORTEST_SECRET:
        yield options
        yield from _SECRET_PART.findall(options)
