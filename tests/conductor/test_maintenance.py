"""Requests about machines: made once, never changed, sent until they arrive, kept in a passport."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cloudshift_lab.conductor.automation import Automation, save_automation
from cloudshift_lab.conductor.maintenance import Maintenance, Postman
from cloudshift_lab.conductor.requests import ask_people
from cloudshift_lab.conductor.sinks import WebhookSink
from cloudshift_lab.core.errors import Conflict, Corrupt, Denied, NotFound, Unavailable, UsageError
from cloudshift_lab.core.maintenance import (
    Exhibit,
    MaintenanceAsk,
    MaintenanceMark,
    MaintenanceView,
)
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.health import Evidence, Finding, Subject

from .bench import AWS, Bench, bench
from .test_healing import commit, lose, newest, settled

__all__ = ["bench"]
NODE = f"{AWS}/0"
ALLOWED = Automation()
ASK = MaintenanceAsk(
    node=NODE, action="drain", words="XID 79: fallen off the bus", by="rule xid",
    evidence=(Exhibit("line of the kernel log", "NVRM: Xid 79"),), within_s=60.0,
)  # fmt: skip
DONE = MaintenanceMark("resolved", by="ada", words="card replaced")
TAKEN = MaintenanceMark("acknowledged", by="ada", words="on it")


@pytest.fixture
def books(tmp_path: Path, world: Any) -> Maintenance:
    return Maintenance(tmp_path, world)


class Hook(ThreadingHTTPServer):
    """A webhook that keeps what it is sent and answers as told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.status = 204
        super().__init__(("127.0.0.1", 0), _Answering)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Answering(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers), json.loads(body)))
        self.send_response(self.server.status)
        if 300 <= self.server.status < 400:
            self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """A test's output is its own."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_made_once_however_often_it_is_asked_for(books: Maintenance) -> None:
    first = books.open(ASK)
    again = books.open(ASK)
    assert again.request == first.request
    assert (again.times_seen, len(books.all())) == (2, 1)
    assert first.request.deadline == first.request.opened_at + 60.0
    books.mark(first.request.request_id, DONE)
    assert books.open(ASK).request.request_id == "mnt-2", "what comes back is another request"


def test_a_request_survives_its_conductor(books: Maintenance, tmp_path: Path, world: Any) -> None:
    books.open(ASK)
    books.mark("mnt-1", TAKEN)
    books.deliver()
    again = Maintenance(tmp_path, world)
    assert again.all() == books.all()
    assert again.deliver()
    assert again.all() == books.all()


def test_the_request_itself_never_changes(books: Maintenance) -> None:
    request = books.open(ASK).request
    books.mark("mnt-1", TAKEN)
    assert books.mark("mnt-1", DONE).request == request


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (MaintenanceMark("resolved", by="ada", words=" "), "what was done"),
        (MaintenanceMark("resolved", by="", words="done"), "who did it"),
        (MaintenanceMark("open", by="ada", words="x"), "open another"),
    ],
)
def test_a_mark_says_who_did_what(books: Maintenance, mark: MaintenanceMark, message: str) -> None:
    books.open(ASK)
    with pytest.raises(UsageError, match=message):
        books.mark("mnt-1", mark)


def test_a_resolved_request_stays_resolved(books: Maintenance) -> None:
    books.open(ASK)
    done = books.mark("mnt-1", DONE)
    assert books.mark("mnt-1", DONE) == done
    with pytest.raises(Conflict, match="resolved already"):
        books.mark("mnt-1", TAKEN)
    with pytest.raises(NotFound, match="choose one of: none is open"):
        books.mark("mnt-2", DONE)


def test_a_machine_is_cordoned_until_its_request_is_resolved(books: Maintenance) -> None:
    books.open(MaintenanceAsk(node="a", action="look at", words="w", by="ada"))
    assert books.cordoned() == frozenset()
    books.open(ASK)
    books.mark("mnt-2", TAKEN)
    assert books.cordoned() == {NODE}
    books.mark("mnt-2", DONE)
    assert books.cordoned() == frozenset()


def test_a_passport_keeps_everything_in_order(books: Maintenance, world: Any) -> None:
    books.open(ASK)
    world.clock_s += 5
    books.mark("mnt-1", TAKEN)
    world.clock_s += 5
    books.mark("mnt-1", DONE)
    passport = books.passport(NODE)
    assert [(entry.what, entry.words) for entry in passport.entries] == [
        ("opened", "drain: XID 79: fallen off the bus"),
        ("acknowledged", "ada: on it"),
        ("resolved", "ada: card replaced"),
    ]
    assert not passport.is_cordoned
    with pytest.raises(NotFound, match=f"machines with a history: {NODE}"):
        books.passport("elsewhere")


def test_the_file_is_written_always_and_again_when_the_state_changes(
    books: Maintenance, tmp_path: Path
) -> None:
    books.open(ASK)
    assert books.deliver()
    path = tmp_path / "maintenance" / "mnt-1.json"
    assert from_json(path.read_bytes(), MaintenanceView).state == "open"
    assert path.stat().st_mode & 0o077 == 0
    books.mark("mnt-1", DONE)
    assert books.deliver()
    told = from_json(path.read_bytes(), MaintenanceView)
    assert (told.state, told.request) == ("resolved", books.view("mnt-1").request)


def test_a_webhook_is_told_of_each_state_once_with_its_key(
    books: Maintenance, tmp_path: Path, hook: Hook
) -> None:
    save_automation(tmp_path, Automation(webhook=hook.url, webhook_token="secret"))
    books.open(ASK)
    assert books.deliver() and books.deliver()
    books.mark("mnt-1", DONE)
    assert books.deliver()
    assert [body["state"] for _, body in hook.got] == ["open", "resolved"]
    headers = [headers for headers, _ in hook.got]
    assert headers[0]["Authorization"] == "Bearer secret"
    assert headers[0]["Idempotency-Key"] == f"{NODE}/drain:mnt-1:open"
    assert headers[0]["Idempotency-Key"] != headers[1]["Idempotency-Key"]
    assert hook.got[0][1]["request"]["evidence"][0]["value"] == "NVRM: Xid 79"


def test_a_webhook_that_fails_is_tried_again_and_keeps_nothing_from_the_file(
    books: Maintenance, tmp_path: Path, hook: Hook
) -> None:
    save_automation(tmp_path, Automation(webhook=hook.url))
    hook.status = 503
    books.open(ASK)
    assert not books.deliver()
    file, webhook = books.view("mnt-1").deliveries
    assert file.is_there and not webhook.is_there
    assert webhook.trouble == "webhook 127.0.0.1 answered HTTP 503; it is tried again"
    hook.status = 200
    assert books.deliver()
    assert all(each.is_there and not each.trouble for each in books.view("mnt-1").deliveries)


@pytest.mark.parametrize("status", [302, 403, 404])
def test_a_webhook_that_refuses_or_redirects_is_to_be_mended(
    books: Maintenance, hook: Hook, status: int
) -> None:
    hook.status = status
    view = books.open(ASK)
    with pytest.raises(Denied, match="mend webhook in automation"):
        WebhookSink(hook.url, "secret").send(view)
    assert len(hook.got) == 1, "a token goes to the address that was set and to no other"


def test_an_address_that_is_no_webhook_or_away_says_so(books: Maintenance, hook: Hook) -> None:
    view = books.open(ASK)
    with pytest.raises(UsageError, match="no http"):
        WebhookSink("file:///etc/passwd").send(view)
    with pytest.raises(Unavailable, match="did not take it"):
        WebhookSink("http://127.0.0.1:9/").send(view)


def test_the_postman_delivers_what_was_opened_before_and_after_it_began(
    books: Maintenance, tmp_path: Path
) -> None:
    told = threading.Semaphore(0)
    books.open(ASK)
    postman = Postman(books, told.release)
    postman.start()
    while not (tmp_path / "maintenance" / "mnt-1.json").exists():
        assert told.acquire(timeout=30.0)
    books.open(MaintenanceAsk(node="b", action="replace", words="w", by="ada"))
    while not (tmp_path / "maintenance" / "mnt-2.json").exists():
        assert told.acquire(timeout=30.0)
    postman.stop(30.0)


def test_damaged_books_are_told_of_and_stop_nothing_else(bench: Bench) -> None:
    (bench.root / "maintenance.jsonl").write_bytes(b'{"check":"0","event":{}}\n')
    bench.restart()
    run_id = bench.train()
    commit(bench, run_id, 7)
    lose(bench, run_id)
    assert settled(bench, run_id).state == "running"
    with pytest.raises(Corrupt):
        bench.service.ask_maintenance(ASK)
    (check,) = [each for each in bench.service.doctor() if each.name == "maintenance"]
    assert not check.ok


# -- with runs -----------------------------------------------------------------------------------


def test_nothing_new_is_started_on_a_cordoned_machine(bench: Bench) -> None:
    bench.service.ask_maintenance(ASK)
    run_id = bench.train()
    assert newest(bench, run_id).job.exclude == (NODE,)
    bench.service.mark_maintenance("mnt-1", DONE)
    commit(bench, run_id, 7)
    lose(bench, run_id)
    settled(bench, run_id, 3)
    assert newest(bench, run_id).job.exclude == ()


def test_a_move_goes_to_no_cordoned_machine(bench: Bench) -> None:
    other = MaintenanceAsk(node="gcp-sim:us-central1/0", action="replace", words="w", by="ada")
    bench.service.ask_maintenance(other)
    run_id = bench.train()
    assert bench.move(run_id).phase == "source_retired"
    assert newest(bench, run_id).job.exclude == ("gcp-sim:us-central1/0",)


def test_a_machine_that_loses_a_run_remembers_and_one_that_does_so_again_is_to_be_looked_at(
    bench: Bench,
) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    lose(bench, run_id)
    settled(bench, run_id)
    assert bench.service.maintenance() == ()
    lose(bench, run_id)
    settled(bench, run_id)
    (view,) = bench.service.maintenance()
    assert (view.request.node, view.request.action) == (NODE, "look at")
    assert (view.request.run_id, view.request.by) == (run_id, "rule run.lost")
    assert {each.what for each in view.request.evidence} >= {"newest committed step"}
    entries = bench.service.passport(NODE).entries
    assert sorted(entry.what for entry in entries) == ["lost", "lost", "opened"]
    bench.restart()
    assert bench.service.passport(NODE).entries == entries


def finding(action: Any, *, proven: bool) -> Finding:
    return Finding(
        rule_id="xid", subject=Subject("gpu", "0"), severity="critical",
        evidence=(Evidence("temperature", 95.5, "C", limit=90.0, at=3.0),),
        action=action, confidence=0.9, deterministic=proven, words="hot", at=3.0,
    )  # fmt: skip


def asked(books: Maintenance, told: Finding, automation: Automation = ALLOWED) -> str:
    """What is asked of machine ``n`` about this finding."""
    ask_people(told, "n", books, automation, run_id="run-1", now=books._world.now())
    views = books.all()
    return views[0].request.action if views else ""


def test_only_what_is_proven_takes_a_machine_out_of_use(books: Maintenance) -> None:
    assert asked(books, finding("restart the run", proven=True)) == ""
    assert asked(books, finding("replace the node", proven=False)) == "look at"
    books.mark("mnt-1", DONE)
    assert asked(books, finding("drain and reset the GPU", proven=True)) == "reset"
    request = books.view("mnt-2").request
    assert (request.run_id, request.by, request.key) == ("run-1", "rule xid", "n/xid/gpu/0")
    assert request.evidence == (Exhibit("temperature", "95.5 C", "90 C", 3.0),)
    assert books.cordoned() == {"n"}


@pytest.mark.parametrize("automation", [Automation(dry_run=True), Automation(max_per_h=0)])
def test_what_is_not_allowed_to_be_done_is_asked_for(
    books: Maintenance, automation: Automation
) -> None:
    assert asked(books, finding("replace the node", proven=True), automation) == "look at"
    assert books.cordoned() == frozenset()
