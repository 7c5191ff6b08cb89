"""Asks a price service over HTTP and says what came instead of prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import msgspec

from cloudshift_lab.core.errors import Denied, Unavailable

T = TypeVar("T")
TIMEOUT_S = 20.0
_MOST_BYTES = 64_000_000


def get_json(
    url: str, kind: type[T], *, service: str, parameters: Mapping[str, str] | None = None
) -> T:
    """One answer of a service.

    Args:
        url: Without ``parameters``; these never appear in an error, since they may hold a key.
        kind: What it must be.
        service: For the errors.

    Raises:
        Denied: It refused the credentials.
        Unavailable: It limits the rate, does not answer, or answers something else.
    """
    full = f"{url}?{urlencode(parameters)}" if parameters else url
    request = Request(full, headers={"Accept": "application/json", "User-Agent": "cloudshift-lab"})
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            body = answer.read(_MOST_BYTES + 1)
    except HTTPError as error:
        with error:
            raise _refused(error, service) from error
    except (URLError, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", error)
        raise Unavailable(f"{service} does not answer ({why}); try again later") from error
    if len(body) > _MOST_BYTES:
        raise Unavailable(f"{service} answers more than 64 MB; narrow the query")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"{service} answers {_said(body)} instead of prices; try again later"
        ) from error


def _refused(error: HTTPError, service: str) -> Denied | Unavailable:
    if error.code in (401, 403):
        return Denied(f"{service} refuses the credentials ({error.code}); check its key")
    if error.code == 429:
        after = error.headers.get("Retry-After", "")
        when = f"in {after} s" if after.isdigit() else "in a few minutes"
        return Unavailable(f"{service} limits how often it may be asked; try again {when}")
    return Unavailable(f"{service} answers {error.code} {error.reason}; try again later")


def _said(body: bytes) -> str:
    start = body[:200].lstrip().lower()
    if not start:
        return "nothing"
    if start.startswith((b"<!doctype", b"<html", b"<")):
        return "a web page (a proxy's or a login's, perhaps)"
    return "something cut off or of another form"
