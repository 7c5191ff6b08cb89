"""A client of a machine's metadata service: plain HTTP, no proxy, short limits, no retries."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from cloudshift_lab.core.errors import CloudshiftError, Denied, Unavailable, UsageError

TIMEOUT_S = 2.0
MAX_BYTES = 1 << 16
_ADVICE = "mend 'notices' of this cloud in clouds.json, or the environment variable"
SIMULATED_HEADER = "X-Cloudshift-Simulated"
"""An emulator marks its answers with this, so that nobody takes a rehearsal for the real thing."""


@dataclass(frozen=True)
class Answer:
    """One answer. ``date`` is the service's own clock, wall seconds, None when it did not say."""

    status: int
    body: bytes
    etag: str | None
    date: float | None
    simulated: bool

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()


class MetadataClient:
    """Asks one metadata service, each time on a connection of its own.

    Args:
        url: ``http://host[:port][/path]``.
        timeout_s: Longest wait for a connection or for an answer, seconds.

    Raises:
        UsageError: The url is not one.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._host, self._port, self._path = _split(url)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._is_closed = False

    @property
    def place(self) -> str:
        """The service's address as people may read it: no path, no credentials."""
        return f"{self._host}:{self._port}"

    def ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b"",
        waits_s: float = 0.0,
    ) -> Answer:  # fmt: skip
        """One question and its answer, whatever its status.

        Args:
            method: As in HTTP.
            path: Below the service's url, with its query.
            headers: More headers; they may hold secrets and are never shown.
            body: What is sent along.
            waits_s: How long the service may hold the answer back, beyond the limit.

        Raises:
            Unavailable: No answer.
        """
        limit_s = self._timeout_s + waits_s
        connection = http.client.HTTPConnection(self._host, self._port, timeout=limit_s)
        try:
            connection.connect()
            self._socket = connection.sock
            if self._is_closed:
                raise Unavailable(f"the client of {self.place} is closed; make another one")
            connection.request(
                method, self._path + path, body or None, {**(headers or {}), "Connection": "close"}
            )
            answer = connection.getresponse()
            return Answer(
                status=answer.status,
                body=answer.read(MAX_BYTES),
                etag=answer.getheader("ETag"),
                date=_seconds(answer.getheader("Date")),
                simulated=answer.getheader(SIMULATED_HEADER) is not None,
            )
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"the metadata service at {self.place} does not answer "
                f"({type(error).__name__}); a notice of this machine's end cannot be heard"
            ) from error
        finally:
            self._socket = None
            connection.close()

    def close(self) -> None:
        """End a question that waits, from whatever thread."""
        self._is_closed = True
        if (waiting := self._socket) is not None:
            with contextlib.suppress(OSError):  # it has just ended by itself
                waiting.shutdown(socket.SHUT_RDWR)


def refused(
    client: MetadataClient, answer: Answer, what: str, advice: str
) -> CloudshiftError:  # fmt: skip
    """The error for an answer that should not have been, without what was sent or received."""
    kind = Denied if answer.status in (400, 401, 403) else Unavailable
    return kind(
        f"the metadata service at {client.place} answered {answer.status} when asked for {what}; "
        f"{advice}"
    )


def _split(url: str) -> tuple[str, int, str]:
    """Host, port and path."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"a metadata service's address is none ({error}); {_ADVICE}") from error
    if parts.scheme != "http" or not host:
        raise UsageError(f"a metadata service is named as http://HOST[:PORT][/PATH]; {_ADVICE}")
    return host, port or 80, parts.path.rstrip("/")


def _seconds(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
