"""Listening for a machine's end in a thread of its own, so that nobody else waits for an answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import TypeVar

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.placement import Notices
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.notices import Dialect, Notice
from cloudshift_lab.engines.notices_aws import AwsNotices
from cloudshift_lab.engines.notices_azure import AzureNotices
from cloudshift_lab.engines.notices_gcp import LEAD_S, GcpNotices
from cloudshift_lab.engines.notices_http import MetadataClient

T = TypeVar("T")
AGAIN_S = 5.0
CLOSE_S = 5.0
AWS_ENV = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
AWS_OFF_ENV = "AWS_EC2_METADATA_DISABLED"
GCP_ENV = "GCE_METADATA_HOST"
LINK_LOCAL = "http://169.254.169.254"
"""Where all three providers put it; asked only by a machine whose cloud is set up to be asked."""


class NoticeWatch:
    """Looks again and again, from ``start`` until ``close``; every notice is given out once.

    No call of this class waits for the service. A service that does not answer is said once, and
    again only after it has answered in between.

    Args:
        dialect: How to look; ours alone from now on.
        again_s: Seconds until the next look after one that failed.
    """

    def __init__(self, dialect: Dialect, *, again_s: float = AGAIN_S) -> None:
        self._dialect = dialect
        self._again_s = again_s
        self._heard: deque[Notice] = deque()
        self._owed: deque[Notice] = deque()
        self._complaints: deque[str] = deque()
        self._known: set[str] = set()
        self._trouble: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def heard(self) -> tuple[Notice, ...]:
        """What is new since the last call."""
        return _drained(self._heard)

    def complaints(self) -> tuple[str, ...]:
        """What has gone wrong since the last call."""
        return _drained(self._complaints)

    def acknowledge(self, notice: Notice) -> None:
        """Have the provider told that we are ready; it is tried until it was told."""
        self._owed.append(notice)

    def close(self) -> None:
        """Stop looking; a question that is under way is given up."""
        self._stop.set()
        self._dialect.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._take(self._dialect.look())
                self._answer()
            except CloudshiftError as error:
                self._complain(error.message)
                self._stop.wait(self._again_s)
            else:
                self._trouble = None
                self._stop.wait(self._dialect.every_s)

    def _take(self, notices: tuple[Notice, ...]) -> None:
        for notice in notices:
            if notice.notice_id not in self._known:
                self._known.add(notice.notice_id)
                self._heard.append(notice)

    def _answer(self) -> None:
        while self._owed:
            self._dialect.acknowledge(self._owed[0])
            self._owed.popleft()

    def _complain(self, message: str) -> None:
        if self._trouble is None and not self._stop.is_set():
            self._trouble = message
            self._complaints.append(message)


def dialect_of(
    notices: Notices, environ: Mapping[str, str], world: World, *, machine: str
) -> Dialect | None:
    """How a machine of a cloud with these settings hears of its end; None: by no service.

    Args:
        notices: The cloud's settings.
        environ: Where the providers' own tools are told another address.
        world: Clock.
        machine: The name of this machine, where one service plays several.

    Raises:
        UsageError: The address is none.
    """
    if notices.dialect == "none":
        return None
    if notices.dialect == "aws" and not notices.url and _is_yes(environ.get(AWS_OFF_ENV)):
        return None
    url = notices.url.replace("{machine}", machine) or _usual_url(notices.dialect, environ)
    client = MetadataClient(url)
    dialect: AwsNotices | GcpNotices | AzureNotices
    if notices.dialect == "aws":
        dialect = AwsNotices(client, world)
    elif notices.dialect == "gcp":
        lead_s = LEAD_S if notices.lead_s is None else notices.lead_s
        dialect = GcpNotices(client, world, lead_s=lead_s)
    else:
        dialect = AzureNotices(client, world)
    if notices.every_s is not None:
        dialect.every_s = notices.every_s
    return dialect


def _usual_url(dialect: str, environ: Mapping[str, str]) -> str:
    if dialect == "aws":
        return environ.get(AWS_ENV) or LINK_LOCAL
    host = environ.get(GCP_ENV) if dialect == "gcp" else None
    return f"http://{host}" if host else LINK_LOCAL


def _is_yes(word: str | None) -> bool:
    return (word or "").strip().lower() == "true"


def _drained(queue: deque[T]) -> tuple[T, ...]:
    found: list[T] = []
    while queue:
        found.append(queue.popleft())
    return tuple(found)
