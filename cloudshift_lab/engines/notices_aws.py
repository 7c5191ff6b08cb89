"""AWS: the interruption notice of a spot instance, two minutes ahead, over IMDSv2."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import msgspec

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.notices import Notice
from cloudshift_lab.engines.notices_http import Answer, MetadataClient, refused

T = TypeVar("T", bound=msgspec.Struct)
EVERY_S = 5.0
TOKEN_S = 21_600
_TOKEN = "/latest/api/token"
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
_ADVICE = "let this machine use IMDSv2 (in a container: a hop limit of 2)"


class _Action(msgspec.Struct, frozen=True):
    action: str
    time: str


class _Rebalance(msgspec.Struct, frozen=True):
    noticeTime: str  # noqa: N815 - AWS calls it so


class AwsNotices:
    """Implements ``Dialect``: every five seconds, as AWS advises.

    A rebalance recommendation is a hint. A hibernation begins with its notice, so nothing is left.

    Args:
        client: Of the instance's metadata service.
        world: Clock.
        every_s: Seconds between two looks.
    """

    def __init__(self, client: MetadataClient, world: World, *, every_s: float = EVERY_S) -> None:
        self._client = client
        self._world = world
        self._token = ""
        self.every_s = every_s

    def look(self) -> tuple[Notice, ...]:
        found = [self._action(), self._rebalance()]
        return tuple(notice for notice in found if notice is not None)

    def acknowledge(self, notice: Notice) -> None:
        """AWS wants no answer."""

    def close(self) -> None:
        self._client.close()

    def _action(self) -> Notice | None:
        answer = self._get(_ACTION)
        if answer is None:
            return None
        told = _decode(answer, _Action)
        left_s = 0.0 if told.action == "hibernate" else self._left_s(told.time, answer)
        return Notice(
            notice_id=f"aws-{told.action}-{told.time}",
            heard_at=self._world.monotonic(),
            left_s=left_s,
            says=f"AWS is about to {told.action} this spot instance",
            simulated=answer.simulated,
        )

    def _rebalance(self) -> Notice | None:
        answer = self._get(_REBALANCE)
        if answer is None:
            return None
        return Notice(
            notice_id=f"aws-rebalance-{_decode(answer, _Rebalance).noticeTime}",
            heard_at=self._world.monotonic(),
            left_s=None,
            says="AWS recommends to rebalance: this spot instance is at elevated risk",
            simulated=answer.simulated,
        )

    def _left_s(self, time: str, answer: Answer) -> float:
        """By the service's clock where it shows one: ours may be wrong."""
        try:
            at = datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()
        except ValueError as error:
            raise Unavailable(
                f"AWS names no time that can be read ('{time[:40]}'); asking again"
            ) from error
        return max(0.0, at - (self._world.now() if answer.date is None else answer.date))

    def _get(self, path: str) -> Answer | None:
        """The answer; None when there is nothing to say. A token that has run out is replaced."""
        answer = self._ask(path)
        if answer.status == 401:
            self._token = ""
            answer = self._ask(path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise refused(self._client, answer, "a notice", _ADVICE)
        return answer

    def _ask(self, path: str) -> Answer:
        if not self._token:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
            answer = self._client.ask("PUT", _TOKEN, headers=headers)
            if answer.status != 200:
                raise refused(self._client, answer, "a token", _ADVICE)
            self._token = answer.text
        return self._client.ask("GET", path, headers={"X-aws-ec2-metadata-token": self._token})


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"AWS said something else than a notice ({error}); asking again"
        ) from error
