"""Where maintenance requests are sent: a file always, a webhook where one is set."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from cloudshift_lab.conductor.automation import Automation
from cloudshift_lab.core.errors import Denied, Exhausted, Unavailable, UsageError
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.maintenance import MaintenanceView
from cloudshift_lab.core.wire import to_json

_LIMIT_S = 10.0
_SCHEMES = ("http", "https")


class Sink(Protocol):
    """Takes a request in its present state; the same state twice changes nothing."""

    @property
    def name(self) -> str:
        """What deliveries are remembered by."""

    def send(self, view: MaintenanceView) -> None:
        """Deliver it.

        Raises:
            CloudshiftError: It did not arrive; says what to do.
        """


class FileSink:
    """One JSON file per request, replaced when its state changes.

    Args:
        folder: Where; made at first use.
    """

    name = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, view: MaintenanceView) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._folder / f"{view.request.request_id}.json", to_json(view))
        except OSError as error:
            raise Exhausted(
                f"{view.request.request_id} cannot be written below {self._folder} "
                f"({error.strerror}); free disk space"
            ) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token is sent to the address that was set, and to no other."""

    def redirect_request(self, *_: object) -> None:
        return None


class WebhookSink:
    """Posts the request as JSON. ``Idempotency-Key`` is equal for equal content.

    Args:
        url: ``https://...``.
        token: Sent as a bearer token; empty: none.
        limit_s: How long an answer is waited for, seconds.
    """

    def __init__(self, url: str, token: str = "", *, limit_s: float = _LIMIT_S) -> None:
        self._url = url
        self._token = token
        self._limit_s = limit_s

    @property
    def name(self) -> str:
        return f"webhook {urlsplit(self._url).hostname or self._url}"

    def send(self, view: MaintenanceView) -> None:
        if urlsplit(self._url).scheme not in _SCHEMES:
            raise UsageError("the webhook is no http(s) address; mend automation.json")
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"{view.request.key}:{view.request.request_id}:{view.state}",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, to_json(view), headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self._limit_s):
                return
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refused(error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"{self.name} did not take it ({type(error).__name__}); it is tried again"
            ) from error

    def _refused(self, status: int) -> Denied | Unavailable:
        if 300 <= status < 500 and status not in (408, 425, 429):
            return Denied(
                f"{self.name} refused it (HTTP {status}); mend webhook in automation.json"
            )
        return Unavailable(f"{self.name} answered HTTP {status}; it is tried again")


def sinks_of(root: Path, automation: Automation) -> tuple[Sink, ...]:
    """All sinks of a state directory, the file first."""
    file = FileSink(root / "maintenance")
    if not automation.webhook:
        return (file,)
    return file, WebhookSink(automation.webhook, automation.webhook_token)
