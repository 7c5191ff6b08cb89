from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.conductor.http import Gate, application
from cloudshift_lab.conductor.service import ConductorService
from cloudshift_lab.core.asks import MoveAsk, NoticeAsk, NoticeView
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Denied,
    NotFound,
    StaleDecision,
    Unavailable,
    UsageError,
)
from cloudshift_lab.core.maintenance import MaintenanceAsk, MaintenanceMark
from cloudshift_lab.core.plan import Decision, MigrationView
from cloudshift_lab.core.run import RunSpec
from cloudshift_lab.core.steps import ENDED_JOB, BranchAsk, DiffAsk, UsageAsk
from cloudshift_lab.migration import Aborted, Receipt, check_chain, make_receipt, start, step
from cloudshift_lab.sim.plans import sample_plan

TOKEN = "a-token"


class Served:
    """A service behind the real HTTP layer, on a loop of its own."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.shut_down = threading.Event()
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._ready.wait(20)

    def client(self, token: str = TOKEN) -> Client:
        return Client(self.url, token)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        gate = Gate(self.service, TOKEN, shutdown=self.shut_down.set)
        server = HTTPServer(application(gate))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.stop()
        await server.close_all_connections()
        gate.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Served]]:
    made: list[Served] = []

    def start(service: Any) -> Served:
        made.append(Served(service))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture
def service(tmp_path: Path, two_clouds: Any) -> Iterator[ConductorService]:
    made = ConductorService(tmp_path, two_clouds.engine, two_clouds.world)
    two_clouds.engine._open_store = made.places.store
    yield made
    made.telemetry.close()


def raw(url: str, method: str, path: str, *, token: str = TOKEN, body: str | None = None) -> Any:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


def test_a_run_is_started_seen_and_stopped_over_http(
    serve: Callable[[Any], Served], service: ConductorService, two_clouds: Any
) -> None:
    client = serve(service).client()
    view = client.train(RunSpec(name="gpt", script="x = 1\n"))
    assert (view.run_id, view.state, view.placement.target) == ("run-1", "starting", "local:here")
    two_clouds.engine.tick()
    for tender in service._registry.all():
        tender.tick()
    assert client.run("gpt").state == "running"
    assert [run.run_id for run in client.runs()] == ["run-1"]
    assert client.cost("gpt").total_micro_usd == 0
    assert client.series("gpt", points=10).run_id == "run-1"
    assert "log of run-1" in client.logs("gpt", rank=0, tail=5)
    assert client.migrations() == client.migrations("gpt") == ()
    assert [target.target for target in client.targets()] == ["local:here"]
    assert client.stop("gpt").state == "stopping"
    assert client.health().home == str(service._root)


@pytest.mark.parametrize("token", ["", "wrong", "a-toke", "a-token2", "\u00e4"])
def test_without_the_right_token_nothing_answers(
    serve: Callable[[Any], Served], service: ConductorService, token: str
) -> None:
    url = serve(service).url
    for method, path in (("GET", "/v1/health"), ("POST", "/v1/shutdown"), ("GET", "/nothing")):
        status, problem = raw(url, method, path, token=token)
        assert (status, problem["kind"]) == (401, "Denied")
    with pytest.raises(Denied, match="token"):
        Client(url, "wrong").runs()


def test_errors_arrive_as_what_they_were(
    serve: Callable[[Any], Served], service: ConductorService
) -> None:
    served = serve(service)
    client = served.client()
    with pytest.raises(UsageError, match=r"line 1 of the script has a syntax error"):
        client.train(RunSpec(name="gpt", script="x = = 1\n"))
    with pytest.raises(NotFound, match="no run called 'a/b'"):
        client.run("a/b")
    assert raw(served.url, "GET", "/v1/runs/none")[0] == 404
    assert raw(served.url, "GET", "/v1/nothing")[0] == 404
    assert raw(served.url, "DELETE", "/v1/runs")[0] == 405
    status, problem = raw(served.url, "POST", "/v1/runs", body="{nonsense")
    assert (status, problem["kind"]) == (400, "UsageError")
    assert "restore it from another copy" not in problem["message"]
    status, problem = raw(served.url, "POST", "/v1/runs", body='{"name": 3, "script": "x"}')
    assert (status, problem["action"]) == (400, "fix")
    assert "$.name" in problem["message"]
    assert raw(served.url, "GET", "/v1/runs/x/series?points=many")[0] == 400
    assert raw(served.url, "GET", "/v1/runs/x/series?points=nan")[0] == 400
    assert raw(served.url, "POST", "/v1/ingest?run=x", body="")[0] == 400


class Scripted:
    """A service of which a test fills in what it needs."""

    def __init__(self, **methods: Any) -> None:
        self.__dict__.update(methods)
        self.now = 1

    def version(self) -> int:
        return self.now

    def subscribe(self, changed: Callable[[], None]) -> None:
        self.changed = changed


@pytest.mark.parametrize(("reason", "status"), [("expired", 410), ("decided", 409)])
def test_an_expired_decision_is_gone_and_a_late_one_conflicts(
    serve: Callable[[Any], Served], reason: str, status: int
) -> None:
    def decide(migration_id: str, decision: Decision) -> None:
        raise StaleDecision(f"{migration_id}: {reason}", reason=reason)

    served = serve(Scripted(decide=decide))
    body = '{"decision_id":"d","plan_digest":"p","verdict":"approve","by":"ada"}'
    answer = raw(served.url, "POST", "/v1/migrations/mig-1/decision", body=body)
    assert answer[0] == status
    decision = Decision(decision_id="d", plan_digest="p", verdict="approve", by="ada")
    with pytest.raises(StaleDecision, match=f"mig-1: {reason}"):
        served.client().decide("mig-1", decision)


def test_reads_answer_while_every_store_call_hangs(serve: Callable[[Any], Served]) -> None:
    hanging, release = threading.Semaphore(0), threading.Event()

    def hang(spec: RunSpec) -> None:
        hanging.release()
        release.wait(30)
        raise Unavailable("the store hung; start it")

    served = serve(Scripted(train=hang, runs=lambda: ()))
    client = served.client()
    outcomes: list[type[BaseException]] = []

    def train() -> None:
        try:
            client.train(RunSpec(name="gpt", script="x\n"))
        except CloudshiftError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=train) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        assert hanging.acquire(timeout=20)
    assert client.runs() == ()
    release.set()
    for thread in threads:
        thread.join()
    assert outcomes == [Unavailable] * 12


def test_a_long_poll_ends_with_the_change_or_with_its_time(serve: Callable[[Any], Served]) -> None:
    service = Scripted()
    client = serve(service).client()
    assert client.changes(0, timeout_s=5).version == 1
    assert client.changes(1, timeout_s=0).version == 1
    answers: list[int] = []
    waiter = threading.Thread(
        target=lambda: answers.append(client.changes(1, timeout_s=60).version)
    )
    waiter.start()
    while waiter.is_alive():
        service.now = 2
        service.changed()
        waiter.join(0.05)
    assert answers == [2]


def test_our_own_bug_is_one_line_and_not_a_traceback(
    serve: Callable[[Any], Served], capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    served = serve(Scripted(runs=broken))
    with pytest.raises(CloudshiftError, match=r"failed inside \(ZeroDivisionError: oops\)"):
        served.client().runs()


def test_telemetry_goes_in_as_bytes_and_sql_comes_out_as_arrow(
    serve: Callable[[Any], Served],
) -> None:
    taken: list[Any] = []

    def ingest(run: str, *, batch: str, table: str, data: bytes) -> None:
        taken.append((run, batch, table, data))

    client = serve(Scripted(ingest=ingest, sql=lambda query: query.encode())).client()
    client.ingest("run-1", batch="b/1", table="step", data=b"\x00\xff")
    assert taken == [("run-1", "b/1", "step", b"\x00\xff")]
    assert client.sql("SELECT 1") == b"SELECT 1"


def test_shutdown_answers_before_it_shuts_down(serve: Callable[[Any], Served]) -> None:
    served = serve(Scripted())
    served.client().shutdown()
    assert served.shut_down.wait(10)


def test_a_conductor_that_dies_while_answering_says_what_to_do() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN)
        with pytest.raises(Unavailable, match="whether it acted is unknown; check `cloudshift"):
            client.train(RunSpec(name="gpt", script="x\n"))
        with pytest.raises(Unavailable, match="run the command again"):
            client.runs()
        thread.join()


def test_a_conductor_that_is_not_there_says_so() -> None:
    with pytest.raises(Unavailable, match="not running"):
        Client("http://127.0.0.1:9", TOKEN).runs()


def test_steps_branches_and_jobs_are_served(
    serve: Callable[[Any], Served], service: ConductorService
) -> None:
    served = serve(service)
    client = served.client()
    client.train(RunSpec(name="gpt", script="x = 1\n"))
    assert client.history("gpt").lines == ()
    assert client.jobs() == ()
    with pytest.raises(NotFound, match="gpt has no checkpoint yet"):
        client.ask(DiffAsk("gpt@1", "gpt@2"))
    with pytest.raises(UsageError, match="write RUN@STEP"):
        client.branch(BranchAsk("gpt@x"))
    view = client.ask(UsageAsk())
    pause = threading.Event()
    while (view := client.job(view.job_id)).state not in ENDED_JOB:
        pause.wait(0.01)
    assert view.state == "done"
    assert b'"stores"' in bytes(view.result)
    assert client.cancel_job(view.job_id).state == "done"
    status, problem = raw(served.url, "POST", "/v1/jobs", body='{"type": "dance"}')
    assert (status, problem["kind"]) == (400, "UsageError")


class Asked:
    """A service that answers moves, notices and receipts, and remembers what was asked."""

    def __init__(self) -> None:
        self.asks: list[tuple[str, Any]] = []

    def version(self) -> int:
        return 1

    def subscribe(self, changed: Callable[[], None]) -> None:
        del changed

    def migrate(self, run: str, ask: MoveAsk) -> MigrationView:
        self.asks.append((run, ask))
        return MigrationView("mig-1", run, "gpt", "proposed", sample_plan())

    def notice(self, run: str, ask: NoticeAsk) -> NoticeView:
        self.asks.append((run, ask))
        return NoticeView(run_id=run, side=ask.side, at=1.0, deadline=1.0 + ask.within_s)

    def receipts(self, run: str) -> tuple[Receipt, ...]:
        self.asks.append((run, None))
        saga, _ = step(start(sample_plan()), Aborted(at=1.0, message="no"))
        return (make_receipt(saga, at=2.0, actual_micro_usd=3),)


def test_everything_that_can_be_asked_of_a_move_arrives_as_it_was_said(
    serve: Callable[[Any], Served],
) -> None:
    service = Asked()
    client = serve(service).client()
    view = client.migrate(
        "gpt", "gcp-sim", expires_s=9.0, closing="replay", rehearse=5, missing_nodes="elsewhere",
        min_nodes=2, elsewhere=("azure-sim",), approvals=2, limit_micro_usd=7, carrier="push",
    )  # fmt: skip
    assert view.plan == sample_plan()
    ask = MoveAsk(
        to="gcp-sim", expires_s=9.0, closing="replay", rehearse=5, missing_nodes="elsewhere",
        min_nodes=2, elsewhere=("azure-sim",), approvals=2, limit_micro_usd=7, carrier="push",
    )  # fmt: skip
    assert service.asks == [("gpt", ask)]
    client.migrate("gpt", "gcp-sim")
    assert service.asks[-1] == ("gpt", MoveAsk(to="gcp-sim"))


def test_an_older_client_that_names_only_a_target_is_understood(
    serve: Callable[[Any], Served],
) -> None:
    service = Asked()
    body = json.dumps({"to": "gcp-sim", "expires_s": 60})
    status, _ = raw(serve(service).url, "POST", "/v1/runs/gpt/migrations", body=body)
    assert (status, service.asks) == (200, [("gpt", MoveAsk(to="gcp-sim", expires_s=60.0))])


@pytest.mark.parametrize(
    "body", [{"to": "a", "closing": "magic"}, {"to": "a", "carrier": "mule"}, {}]
)
def test_a_wish_of_an_unknown_kind_is_the_callers_error(
    serve: Callable[[Any], Served], body: dict[str, str]
) -> None:
    url = serve(Asked()).url
    status, problem = raw(url, "POST", "/v1/runs/gpt/migrations", body=json.dumps(body))
    assert (status, problem["kind"]) == (400, "UsageError")


def test_notices_and_receipts_cross_http(serve: Callable[[Any], Served]) -> None:
    service = Asked()
    client = serve(service).client()
    told = client.notice("gpt", 30.0, side="target")
    assert (told.run_id, told.side, told.deadline) == ("gpt", "target", 31.0)
    assert service.asks == [("gpt", NoticeAsk(within_s=30.0, side="target"))]
    (receipt,) = client.receipts("gpt")
    assert receipt.actual_micro_usd == 3
    assert check_chain([receipt]) == receipt.digest


def test_maintenance_requests_and_passports_cross_http(
    serve: Callable[[Any], Served], service: ConductorService
) -> None:
    client = serve(service).client()
    ask = MaintenanceAsk(node="local:here/0", action="reboot", words="ECC", by="ada")
    view = client.ask_maintenance(ask)
    assert client.maintenance() == (view,)
    mark = MaintenanceMark("resolved", by="bob", words="rebooted")
    assert client.mark_maintenance("mnt-1", mark).state == "resolved"
    passport = client.passport("local:here/0")
    assert [entry.what for entry in passport.entries] == ["opened", "resolved"]
    with pytest.raises(NotFound, match="nothing is known against"):
        client.passport("other/0")
    with pytest.raises(UsageError, match="action"):
        client.ask_maintenance(msgspec.structs.replace(ask, action="burn"))  # type: ignore[arg-type]
