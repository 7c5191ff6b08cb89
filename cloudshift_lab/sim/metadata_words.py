"""What the metadata services of three providers answer, word for word, when a machine must go."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec

from cloudshift_lab.core.wire import to_json

AWS_LEAD_S = 120.0
GCP_LEAD_S = 30.0
TOKEN_LIMIT_S = 21_600
_TEXT = "text/plain"
_JSON = "application/json"


class Preemption(msgspec.Struct, frozen=True):
    """One machine will be taken away; it is simulated.

    ``machine``: which one. ``at`` and ``deadline`` are wall-clock
    seconds. ``lead_s``: how long before the deadline it is said; None: as the provider does.
    ``is_hint``: the provider only thinks that it may happen. ``kills``: what runs there is ended
    then, as if the machine had gone. ``started``: the machine has said
    that it is ready.
    """

    event_id: str
    machine: str
    at: float
    deadline: float
    lead_s: float | None = None
    is_hint: bool = False
    kills: bool = False
    started: tuple[str, ...] = ()

    def is_said(self, now: float, usual_lead_s: float) -> bool:
        """Whether a provider that says it so long before says it now."""
        lead_s = usual_lead_s if self.lead_s is None else self.lead_s
        return not self.is_hint and now >= self.deadline - lead_s


class Machines(Protocol):
    """What the dialects ask the emulator for."""

    def now(self) -> float: ...

    def of(self, machine: str) -> tuple[Preemption, ...]:
        """All that concerns this machine now."""

    def of_all(self) -> tuple[Preemption, ...]:
        """All that is so now."""

    def wait_s(self, seconds: float) -> None:
        """Until there is news, or shorter."""

    def ready(self, event_id: str, machine: str) -> bool:
        """The machine has said that it is ready; False when there is no such event."""

    def new_token(self, seconds: float) -> str: ...

    def is_token(self, token: str) -> bool: ...


@dataclass(frozen=True)
class Asked:
    """One request below a machine's address; the names of its headers in small letters."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    def query(self, name: str) -> str:
        return parse_qs(urlsplit(self.target).query).get(name, [""])[0]

    def header(self, name: str) -> str:
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    body: bytes = b""
    kind: str = _TEXT
    headers: dict[str, str] = field(default_factory=dict)


def answer(machines: Machines, machine: str, asked: Asked) -> Reply:
    """What one of the three services says; 404 for all that none of them has."""
    if asked.path.startswith("/latest/"):
        return _aws(machines, machine, asked)
    if asked.path.startswith("/computeMetadata/"):
        return _gcp(machines, machine, asked)
    if asked.path.startswith("/metadata/"):
        return _azure(machines, machine, asked)
    return Reply(404)


# -- AWS -------------------------------------------------------------------------------------------


def _aws(machines: Machines, machine: str, asked: Asked) -> Reply:
    if asked.header("X-Forwarded-For"):
        return Reply(403)
    if (asked.method, asked.path) == ("PUT", "/latest/api/token"):
        return _aws_token(machines, asked)
    if asked.method != "GET":
        return Reply(405)
    if not machines.is_token(asked.header("X-aws-ec2-metadata-token")):
        return Reply(401)
    found, now = machines.of(machine), machines.now()
    if asked.path == "/latest/meta-data/spot/instance-action":
        said = [each for each in found if each.is_said(now, AWS_LEAD_S)]
        told = (
            {"action": "terminate", "time": _utc(min(each.deadline for each in said))}
            if said
            else None
        )
    elif asked.path == "/latest/meta-data/events/recommendations/rebalance":
        early = [each for each in found if each.is_hint or each.deadline - each.at > AWS_LEAD_S]
        told = {"noticeTime": _utc(min(each.at for each in early))} if early else None
    else:
        told = None
    return Reply(404) if told is None else Reply(200, to_json(told), _JSON)


def _aws_token(machines: Machines, asked: Asked) -> Reply:
    seconds = asked.header("X-aws-ec2-metadata-token-ttl-seconds")
    if not seconds.isdecimal() or not 1 <= int(seconds) <= TOKEN_LIMIT_S:
        return Reply(400)
    return Reply(200, machines.new_token(float(seconds)).encode())


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- Google Cloud ----------------------------------------------------------------------------------


def _gcp(machines: Machines, machine: str, asked: Asked) -> Reply:
    if asked.header("Metadata-Flavor") != "Google" or asked.header("X-Forwarded-For"):
        return Reply(403)
    if asked.path != "/computeMetadata/v1/instance/preempted":
        return Reply(404)
    word = _preempted(machines, machine)
    if asked.query("wait_for_change").lower() == "true":
        limit_s = _number(asked.query("timeout_sec"), 3600.0)
        until, last = machines.now() + limit_s, asked.query("last_etag") or _etag(word)
        while _etag(word) == last and (left_s := until - machines.now()) > 0:
            machines.wait_s(left_s)
            word = _preempted(machines, machine)
    headers = {"ETag": _etag(word), "Metadata-Flavor": "Google"}
    return Reply(200, word.encode(), "application/text", headers)


def _number(word: str, otherwise: float) -> float:
    try:
        return float(word)
    except ValueError:
        return otherwise


def _preempted(machines: Machines, machine: str) -> str:
    now = machines.now()
    return "TRUE" if any(e.is_said(now, GCP_LEAD_S) for e in machines.of(machine)) else "FALSE"


def _etag(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()[:16]


# -- Azure -----------------------------------------------------------------------------------------


class _Start(msgspec.Struct, frozen=True, rename="pascal"):
    event_id: str


class _Starts(msgspec.Struct, frozen=True, rename="pascal"):
    start_requests: tuple[_Start, ...]


def _azure(machines: Machines, machine: str, asked: Asked) -> Reply:
    if asked.header("Metadata").lower() != "true" or not asked.query("api-version"):
        return Reply(400)
    if asked.path == "/metadata/instance/compute/name":
        return Reply(200, machine.encode())
    if asked.path != "/metadata/scheduledevents":
        return Reply(404)
    if asked.method == "POST":
        return _azure_start(machines, machine, asked)
    events = [each for each in machines.of_all() if not each.is_hint]
    told = {"DocumentIncarnation": len(events), "Events": [_event(each) for each in events]}
    return Reply(200, to_json(told), _JSON)


def _azure_start(machines: Machines, machine: str, asked: Asked) -> Reply:
    try:
        starts = msgspec.json.decode(asked.body, type=_Starts)
    except msgspec.DecodeError:
        return Reply(400)
    known = [machines.ready(each.event_id, machine) for each in starts.start_requests]
    return Reply(200 if known and all(known) else 404)


def _event(event: Preemption) -> dict[str, object]:
    has_begun = event.machine in event.started
    not_before = format_datetime(datetime.fromtimestamp(event.deadline, UTC), usegmt=True)
    return {
        "EventId": event.event_id,
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": [event.machine],
        "EventStatus": "Started" if has_begun else "Scheduled",
        "NotBefore": "" if has_begun else not_before,
        "Description": "SIMULATED",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
