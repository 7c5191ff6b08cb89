"""REST routes ``{base}cloudshift/api/...``: forwards to the conductor for logged-in users only."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import APIHandler
from tornado import web

from cloudshift_lab.core.errors import CloudshiftError, Unavailable, UsageError
from cloudshift_lab.core.plan import Decision
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.lab.desk import user_name
from cloudshift_lab.lab.server.link import ConductorLink, Reply

_ID = r"[\w.-]+"
_READS = (
    "health",
    "runs",
    rf"runs/{_ID}",
    rf"runs/{_ID}/(?:cost|series|logs)",
    "migrations",
    rf"migrations/{_ID}",
    "targets",
    "doctor",
)
_ACTS = (rf"runs/{_ID}/(?:stop|resume|migrations)",)
_DECISIONS = rf"migrations/{_ID}/decision"
_RANDOM_ID = re.compile(r"[0-9a-f]{32}")
_SURFACE = re.compile(r"(?:.*\()?(?P<label>[\w -]{1,40})\)?")
_MAX_BODY_BYTES = 64_000


class AwayProblem(msgspec.Struct, frozen=True):
    """A ``core.views.Problem`` that also says since when the conductor is away, in seconds."""

    kind: str
    message: str
    action: str
    since: float | None = None


class CloudshiftHandler(APIHandler):
    """What all routes share: Jupyter's login and XSRF check, problems as JSON."""

    auth_resource = "cloudshift"
    _track_activity = False  # a page that polls must not keep an idle server alive

    def initialize(self, link: ConductorLink) -> None:
        self.link = link

    def send(self, reply: Reply) -> None:
        self.set_status(reply.status)
        self.set_header("Cache-Control", "no-store")
        self.finish(reply.body, set_content_type="application/json")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None))[1]
        if not isinstance(error, CloudshiftError):
            super().write_error(status_code, **kwargs)
            return
        since = self.link.offline_since if isinstance(error, Unavailable) else None
        problem = AwayProblem(type(error).__name__, error.message, error.action, since)
        self.send(Reply(503 if isinstance(error, Unavailable) else 400, to_json(problem)))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, CloudshiftError):  # those are answers, not accidents
            super().log_exception(typ, value, tb)


class ReadHandler(CloudshiftHandler):
    """Everything that only looks; never starts a conductor."""

    @web.authenticated
    @authorized
    async def get(self, path: str) -> None:
        self.send(await self.link.read(path, self.request.query))


class ActHandler(CloudshiftHandler):
    """Everything that changes something; starts a conductor where none runs."""

    @web.authenticated
    @authorized
    async def post(self, path: str) -> None:
        if len(self.request.body) > _MAX_BODY_BYTES:
            raise UsageError(f"the request is larger than {_MAX_BODY_BYTES} bytes; send less")
        self.send(await self.link.act(path, self.body()))

    def body(self) -> bytes:
        """What is passed on."""
        return self.request.body or b"{}"


class DecisionHandler(ActHandler):
    """Approve or reject. Who did is what the login says, not what the page says."""

    def body(self) -> bytes:
        try:
            decision = msgspec.json.decode(super().body(), type=Decision)
        except msgspec.MsgspecError as error:
            raise UsageError(f"the decision cannot be read ({error}); reload the page") from error
        by = f"{who(self.current_user)} ({surface_of(decision.by)})"
        return to_json(msgspec.structs.replace(decision, by=by))


def who(user: User) -> str:
    """The user's name; the owner of this server's where a token or password is all that is known.

    Jupyter makes up a name then, ``Anonymous Callisto``: new at each login, so of no use.
    """
    is_made_up = user.name.startswith("Anonymous ") and _RANDOM_ID.fullmatch(user.username)
    return user_name() if is_made_up else user.username


def surface_of(by: str) -> str:
    """Where in the browser somebody decided, of a page's ``side panel`` or ``ada (side panel)``."""
    match = _SURFACE.fullmatch(by)
    return match["label"] if match else "browser"


class StartHandler(CloudshiftHandler):
    """``POST conductor/start``: what the side panel's button asks for."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        await self.link.start()
        self.send(await self.link.read("health"))


def routes(link: ConductorLink) -> list[tuple[str, type[APIHandler], object]]:
    """All REST routes; Jupyter puts its base URL before them."""
    api = "/cloudshift/api"
    shared = {"link": link}
    return [
        (f"{api}/({'|'.join(_READS)})", ReadHandler, shared),
        (f"{api}/({'|'.join(_ACTS)})", ActHandler, shared),
        (f"{api}/({_DECISIONS})", DecisionHandler, shared),
        (f"{api}/conductor/start", StartHandler, shared),
    ]
