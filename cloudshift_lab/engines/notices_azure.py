"""Azure: scheduled events of this machine, and our word that they may begin."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import msgspec

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.notices import Notice
from cloudshift_lab.engines.notices_http import Answer, MetadataClient, refused

EVERY_S = 1.0
_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
_HEADERS = {"Metadata": "true"}
_ADVICE = "look whether this machine may read its metadata"
_ENDING = frozenset({"Preempt", "Terminate", "Redeploy", "Reboot"})


class _Event(msgspec.Struct, frozen=True, rename="pascal"):
    event_id: str
    event_type: str
    resources: tuple[str, ...] = ()
    event_status: str = "Scheduled"
    not_before: str = ""


class _Events(msgspec.Struct, frozen=True, rename="pascal"):
    events: tuple[_Event, ...] = ()


class AzureNotices:
    """Implements ``Dialect``: every second. All that ends this machine's processes is a notice.

    Machines of one set see each other's events: those of others are not for us. An event that is
    acknowledged may begin before its time, so that is for when everything is saved.

    Args:
        client: Of the machine's metadata service.
        world: Clock.
        every_s: Seconds between two looks.
    """

    def __init__(self, client: MetadataClient, world: World, *, every_s: float = EVERY_S) -> None:
        self._client = client
        self._world = world
        self._name: str | None = None
        self.every_s = every_s

    def look(self) -> tuple[Notice, ...]:
        answer = self._client.ask("GET", _EVENTS, headers=_HEADERS)
        if answer.status != 200:
            raise refused(self._client, answer, "scheduled events", _ADVICE)
        events = [event for event in _decode(answer).events if event.event_type in _ENDING]
        return tuple(self._notice(event, answer) for event in events if self._is_ours(event))

    def acknowledge(self, notice: Notice) -> None:
        event_id = notice.notice_id.removeprefix("azure-")
        body = to_json({"StartRequests": [{"EventId": event_id}]})
        answer = self._client.ask("POST", _EVENTS, headers=_HEADERS, body=body)
        if answer.status not in (200, 202, 204, 404):  # 404: it has begun, or was called off
            raise refused(self._client, answer, "the start of an event", _ADVICE)

    def close(self) -> None:
        self._client.close()

    def _is_ours(self, event: _Event) -> bool:
        """Without knowing who we are, every event might be ours: a save in vain costs less."""
        if self._name is None:
            answer = self._client.ask("GET", _NAME, headers=_HEADERS)
            self._name = answer.text if answer.status == 200 else None
        return not self._name or not event.resources or self._name in event.resources

    def _notice(self, event: _Event, answer: Answer) -> Notice:
        return Notice(
            notice_id=f"azure-{event.event_id}",
            heard_at=self._world.monotonic(),
            left_s=self._left_s(event, answer),
            says=f"Azure is about to {event.event_type.lower()} this machine",
            simulated=answer.simulated,
        )

    def _left_s(self, event: _Event, answer: Answer) -> float:
        """By the service's clock where it shows one; an event that has begun names no time."""
        if not event.not_before:
            return 0.0
        try:
            at = parsedate_to_datetime(event.not_before).timestamp()
        except ValueError as error:
            raise Unavailable(
                f"Azure names no time that can be read ('{event.not_before[:40]}'); asking again"
            ) from error
        return max(0.0, at - (self._world.now() if answer.date is None else answer.date))


def _decode(answer: Answer) -> _Events:
    try:
        return msgspec.json.decode(answer.body, type=_Events)
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"Azure said something else than events ({error}); asking again"
        ) from error
