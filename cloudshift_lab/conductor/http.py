"""The conductor's HTTP API on loopback: JSON of core structs behind a bearer token."""

from __future__ import annotations

import asyncio
import functools
import hmac
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
import tornado.web

from cloudshift_lab.conductor.api import Service
from cloudshift_lab.conductor.client import Logs
from cloudshift_lab.core.asks import MoveAsk, NoticeAsk
from cloudshift_lab.core.costs import BudgetAsk
from cloudshift_lab.core.errors import CloudshiftError, Corrupt, StaleDecision, UsageError
from cloudshift_lab.core.maintenance import MaintenanceAsk, MaintenanceMark
from cloudshift_lab.core.plan import Decision
from cloudshift_lab.core.run import RunSpec
from cloudshift_lab.core.steps import BranchAsk, JobAsk
from cloudshift_lab.core.views import Changes, Problem
from cloudshift_lab.core.wire import from_json, to_json

T = TypeVar("T")
_STATUS = {
    "UsageError": 400,
    "NotFound": 404,
    "Denied": 403,
    "Unavailable": 503,
    "Conflict": 409,
    "Fenced": 409,
    "StaleDecision": 409,
    "Corrupt": 500,
    "Mismatch": 409,
    "NodesMissing": 409,
    "Exhausted": 507,
    "Unsupported": 501,
}
_MAX_WAIT_S = 60.0
MAX_BODY_BYTES = 64_000_000


def status_of(error: CloudshiftError) -> int:
    """The HTTP status that carries an error; an expired decision is 410, else a conflict 409."""
    if isinstance(error, StaleDecision) and error.facts.get("reason") == "expired":
        return 410
    return _STATUS.get(type(error).__name__, 500)


class Gate:
    """What all handlers share: the service, its token, and the threads blocking calls run on.

    Reads that never touch a store have their own threads, so that they answer while every other
    thread waits for a store that hangs.
    """

    def __init__(self, service: Service, token: str, *, shutdown: Callable[[], None]) -> None:
        self.service = service
        self.token = token
        self.shutdown = shutdown
        self.quick = ThreadPoolExecutor(max_workers=4, thread_name_prefix="quick")
        self.slow = ThreadPoolExecutor(max_workers=8, thread_name_prefix="slow")
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Event] = set()
        service.subscribe(self._changed)

    def close(self) -> None:
        self.quick.shutdown(wait=False, cancel_futures=True)
        self.slow.shutdown(wait=False, cancel_futures=True)
        self._wake()

    async def wait_for_change(self, since: int, timeout_s: float) -> int:
        """The service's version once it is above ``since``, or after ``timeout_s``."""
        woken = asyncio.Event()
        self._waiters.add(woken)
        try:
            if self.service.version() <= since:
                async with asyncio.timeout(timeout_s):
                    await woken.wait()
        except TimeoutError:
            return self.service.version()
        finally:
            self._waiters.discard(woken)
        return self.service.version()

    def _changed(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.set()


class _Handler(tornado.web.RequestHandler):
    def initialize(self, gate: Gate) -> None:
        self.gate = gate

    def prepare(self) -> None:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(token.encode(), self.gate.token.encode())
        if scheme != "Bearer" or not right:
            self.refuse(
                401, Problem("Denied", "wrong conductor token; reconnect to read it anew", "fix")
            )

    def refuse(self, status: int, problem: Problem) -> None:
        self.set_status(status)
        self.reply(problem)

    def reply(self, value: object) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(to_json(value))

    async def quick(self, call: Callable[..., T], *args: object, **named: object) -> T:
        work = functools.partial(call, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self.gate.quick, work)

    async def slow(self, call: Callable[..., T], *args: object, **named: object) -> T:
        work = functools.partial(call, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self.gate.slow, work)

    def body(self, kind: type[T]) -> T:
        try:
            return from_json(self.request.body, kind, what="the request")
        except Corrupt as error:
            raise UsageError(f"{error.message.partition(';')[0]}; mend the call") from error

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        given = self.get_query_argument(name, None)
        try:
            value = default if given is None else float(given)
        except ValueError as error:
            raise UsageError(f"'{name}' must be a number, not '{given}'; mend the call") from error
        if not math.isfinite(value):
            raise UsageError(f"'{name}' must be a finite number, not '{given}'; mend the call")
        return min(max(value, least), most)

    def write_error(self, status_code: int, **kwargs: object) -> None:
        info = kwargs.get("exc_info")
        error = info[1] if isinstance(info, tuple) else None
        if isinstance(error, CloudshiftError):
            self.refuse(
                status_of(error), Problem(type(error).__name__, error.message, error.action)
            )
            return
        if isinstance(error, tornado.web.HTTPError):
            text = f"the conductor has no such route or method ({status_code}); mend the call"
            self.refuse(status_code, Problem("UsageError", text, "fix"))
            return
        text = f"the conductor failed inside ({type(error).__name__}: {error}); see conductor.log"
        self.refuse(500, Problem("CloudshiftError", text, "stop"))

    def log_exception(self, typ: object, value: object, tb: object) -> None:
        if not isinstance(value, CloudshiftError):
            super().log_exception(typ, value, tb)  # type: ignore[arg-type]


class _Unknown(_Handler):
    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            raise tornado.web.HTTPError(404)


class _Health(_Handler):
    async def get(self) -> None:
        self.reply(self.gate.service.health())


class _Runs(_Handler):
    async def get(self) -> None:
        self.reply(await self.quick(self.gate.service.runs))

    async def post(self) -> None:
        self.reply(await self.slow(self.gate.service.train, self.body(RunSpec)))


class _Run(_Handler):
    async def get(self, run: str) -> None:
        self.reply(await self.quick(self.gate.service.run, run))


class _Stop(_Handler):
    async def post(self, run: str) -> None:
        self.reply(await self.slow(self.gate.service.stop, run))


class _Resume(_Handler):
    async def post(self, run: str) -> None:
        self.reply(await self.slow(self.gate.service.resume, run))


class _Logs(_Handler):
    async def get(self, run: str) -> None:
        rank = self.number("rank", -1, least=-1, most=1_000_000)
        tail = self.number("tail", 200, least=1, most=100_000)
        text = await self.slow(
            self.gate.service.logs, run, rank=None if rank < 0 else int(rank), tail=int(tail)
        )
        self.reply(Logs(text=text))


class _Cost(_Handler):
    async def get(self, run: str) -> None:
        until = int(self.number("until", 0, least=0, most=2**53))
        self.reply(await self.quick(self.gate.service.cost, run, until=until or None))


class _Charges(_Handler):
    async def get(self, run: str) -> None:
        self.reply(await self.quick(self.gate.service.charges, run))


class _Budget(_Handler):
    async def post(self, run: str) -> None:
        ask = self.body(BudgetAsk)
        self.reply(await self.quick(self.gate.service.set_budget, run, ask.micro_usd))


class _Series(_Handler):
    async def get(self, run: str) -> None:
        points = int(self.number("points", 240, least=2, most=5000))
        self.reply(await self.quick(self.gate.service.series, run, points=points))


class _RunHealth(_Handler):
    async def get(self, run: str) -> None:
        self.reply(await self.slow(self.gate.service.run_health, run))


class _RunGoodput(_Handler):
    async def get(self, run: str) -> None:
        self.reply(await self.slow(self.gate.service.run_goodput, run))


class _RunMigrations(_Handler):
    async def post(self, run: str) -> None:
        self.reply(await self.slow(self.gate.service.migrate, run, self.body(MoveAsk)))


class _Notice(_Handler):
    async def post(self, run: str) -> None:
        self.reply(await self.slow(self.gate.service.notice, run, self.body(NoticeAsk)))


class _Receipts(_Handler):
    async def get(self, run: str) -> None:
        self.reply(await self.quick(self.gate.service.receipts, run))


class _Migrations(_Handler):
    async def get(self) -> None:
        run = self.get_query_argument("run", None)
        self.reply(await self.quick(self.gate.service.migrations, run))


class _Migration(_Handler):
    async def get(self, migration_id: str) -> None:
        self.reply(await self.quick(self.gate.service.migration, migration_id))


class _Decide(_Handler):
    async def post(self, migration_id: str) -> None:
        decision = self.body(Decision)
        self.reply(await self.quick(self.gate.service.decide, migration_id, decision))


class _Steps(_Handler):
    async def get(self, run: str) -> None:
        last = self.number("last", 0, least=0, most=1_000_000)
        self.reply(await self.slow(self.gate.service.history, run, last=int(last) or None))


class _Branches(_Handler):
    async def post(self) -> None:
        self.reply(await self.slow(self.gate.service.branch, self.body(BranchAsk)))


class _Jobs(_Handler):
    async def get(self) -> None:
        self.reply(await self.quick(self.gate.service.jobs))

    async def post(self) -> None:
        ask: JobAsk = self.body(JobAsk)  # type: ignore[arg-type]
        self.reply(await self.slow(self.gate.service.ask, ask))


class _Job(_Handler):
    async def get(self, job_id: str) -> None:
        self.reply(await self.quick(self.gate.service.job, job_id))


class _CancelJob(_Handler):
    async def post(self, job_id: str) -> None:
        self.reply(await self.quick(self.gate.service.cancel_job, job_id))


class _Maintenance(_Handler):
    async def get(self) -> None:
        self.reply(await self.quick(self.gate.service.maintenance))

    async def post(self) -> None:
        ask = self.body(MaintenanceAsk)
        self.reply(await self.quick(self.gate.service.ask_maintenance, ask))


class _MaintenanceMark(_Handler):
    async def post(self, request_id: str) -> None:
        mark = self.body(MaintenanceMark)
        self.reply(await self.quick(self.gate.service.mark_maintenance, request_id, mark))


class _Passport(_Handler):
    async def get(self, node: str) -> None:
        self.reply(await self.quick(self.gate.service.passport, node))


class _Targets(_Handler):
    async def get(self) -> None:
        self.reply(await self.quick(self.gate.service.targets))


class _Doctor(_Handler):
    async def get(self) -> None:
        self.reply(await self.slow(self.gate.service.doctor))


class _Changes(_Handler):
    async def get(self) -> None:
        since = int(self.number("since", 0, least=-1, most=2**62))
        timeout_s = self.number("timeout", 25, least=0, most=_MAX_WAIT_S)
        self.reply(Changes(version=await self.gate.wait_for_change(since, timeout_s)))


class _Ingest(_Handler):
    async def post(self) -> None:
        given = {name: self.get_query_argument(name, "") for name in ("run", "batch", "table")}
        if not all(given.values()):
            raise UsageError("ingest needs run, batch and table in its query; mend the call")
        run = given.pop("run")
        stored = await self.quick(self.gate.service.ingest, run, data=self.request.body, **given)
        if stored is not None:  # no thread waits for the commit that many batches share
            await asyncio.wrap_future(stored)
        self.reply({})


class _SqlRequest(msgspec.Struct, frozen=True):
    query: str


class _Sql(_Handler):
    async def post(self) -> None:
        data = await self.slow(self.gate.service.sql, self.body(_SqlRequest).query)
        self.set_header("Content-Type", "application/vnd.apache.arrow.stream")
        self.finish(data)


class _Shutdown(_Handler):
    async def post(self) -> None:
        self.reply({})
        self.gate.shutdown()


def application(gate: Gate) -> tornado.web.Application:
    """All routes of the API over one gate."""
    name = "([^/]+)"
    routes: list[tuple[str, type[_Handler]]] = [
        ("/v1/health", _Health),
        ("/v1/runs", _Runs),
        (f"/v1/runs/{name}", _Run),
        (f"/v1/runs/{name}/stop", _Stop),
        (f"/v1/runs/{name}/resume", _Resume),
        (f"/v1/runs/{name}/logs", _Logs),
        (f"/v1/runs/{name}/cost", _Cost),
        (f"/v1/runs/{name}/charges", _Charges),
        (f"/v1/runs/{name}/budget", _Budget),
        (f"/v1/runs/{name}/series", _Series),
        (f"/v1/runs/{name}/health", _RunHealth),
        (f"/v1/runs/{name}/goodput", _RunGoodput),
        (f"/v1/runs/{name}/migrations", _RunMigrations),
        (f"/v1/runs/{name}/notice", _Notice),
        (f"/v1/runs/{name}/receipts", _Receipts),
        (f"/v1/runs/{name}/steps", _Steps),
        ("/v1/branches", _Branches),
        ("/v1/jobs", _Jobs),
        (f"/v1/jobs/{name}", _Job),
        (f"/v1/jobs/{name}/cancel", _CancelJob),
        ("/v1/migrations", _Migrations),
        (f"/v1/migrations/{name}", _Migration),
        (f"/v1/migrations/{name}/decision", _Decide),
        ("/v1/maintenance", _Maintenance),
        (f"/v1/maintenance/{name}", _MaintenanceMark),
        (f"/v1/nodes/{name}", _Passport),
        ("/v1/targets", _Targets),
        ("/v1/doctor", _Doctor),
        ("/v1/changes", _Changes),
        ("/v1/ingest", _Ingest),
        ("/v1/sql", _Sql),
        ("/v1/shutdown", _Shutdown),
    ]
    shared = {"gate": gate}
    return tornado.web.Application(
        [(path, handler, shared) for path, handler in routes],
        default_handler_class=_Unknown,
        default_handler_args=shared,
        log_function=lambda handler: None,  # noqa: ARG005
    )
