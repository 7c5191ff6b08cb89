"""Step reports on their way: datagram, leftovers, post, spool."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.agent.rows import ConductorPost, RowReceiver, RowShipper
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.staging import StepReport
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.telemetry.batch import decode
from cloudshift_lab.telemetry.spool import Sender

from .conftest import SwitchableStore, make_job


class Conductor:
    """Takes batches at a loopback port and remembers them."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str | None, bytes]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.taken.append((self.path, self.headers["Authorization"], body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                return

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def announce(self, home: Path, token: str = "secret") -> None:
        url = f"http://127.0.0.1:{self.server.server_port}"
        daemon = {"pid": 1, "start_time": "", "url": url, "token": token, "version": "0"}
        (home / "daemon.json").write_text(json.dumps(daemon))

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def conductor() -> Iterator[Conductor]:
    made = Conductor()
    yield made
    made.close()


def report(step: int, rank: int = 0) -> StepReport:
    return StepReport(ts=1000.0 + step, rank=rank, step=step, loss=1.0, tokens=8, step_s=0.1)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(node_dir: Path, payload: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(payload, str(node_dir / "rows.sock"))


def test_reports_arrive_in_the_order_sent_and_garbage_is_dropped(tmp_path: Path) -> None:
    taken: list[int] = []
    receiver = RowReceiver(tmp_path, lambda rows: taken.extend(row.step for row in rows))
    send(tmp_path, msgspec.json.encode([report(1), report(2)]))
    send(tmp_path, b"\xff not json")
    send(tmp_path, msgspec.json.encode([report(3)]))
    wait_for(lambda: len(taken) == 3)
    receiver.close()
    assert taken == [1, 2, 3]


def test_reports_that_a_rank_left_in_a_file_are_not_lost(tmp_path: Path) -> None:
    taken: list[int] = []
    receiver = RowReceiver(tmp_path, lambda rows: taken.extend(row.step for row in rows))
    (tmp_path / "rank-1.rows.json").write_bytes(msgspec.json.encode([report(9)]))
    receiver.close()
    assert taken == [9]
    assert not (tmp_path / "rank-1.rows.json").exists()


def test_a_batch_is_posted_with_the_conductors_token(tmp_path: Path, conductor: Conductor) -> None:
    conductor.announce(tmp_path)
    post = ConductorPost(tmp_path, "run-a")
    sender = Sender(post, MemoryStore(), "run-a", generation=4, nonce="n")
    shipper = RowShipper(sender, make_job(4))
    shipper.add([report(1), report(2)])
    wait_for(lambda: bool(conductor.taken))
    shipper.close()
    path, authorization, body = conductor.taken[0]
    assert path == "/v1/ingest?run=run-a&batch=run-a-g4-n-0&table=step"
    assert authorization == "Bearer secret"
    rows = decode("step", body).to_pylist()
    assert [(r["step"], r["generation"], r["run_id"]) for r in rows] == [
        (1, 4, "run-a"),
        (2, 4, "run-a"),
    ]


def test_the_parts_of_a_step_go_out_with_its_row(tmp_path: Path, conductor: Conductor) -> None:
    conductor.announce(tmp_path)
    post = ConductorPost(tmp_path, "run-a")
    shipper = RowShipper(Sender(post, None, "run-a", generation=1, nonce="n"), make_job())
    shipper.add([msgspec.structs.replace(report(1), sections={"forward": 0.05}), report(2)])
    shipper.close()
    sent = [cell for _, _, body in conductor.taken for cell in decode("step", body)["sections"]]
    assert [cell.as_py() for cell in sent] == [[("forward", 0.05)], None]


def test_rows_wait_in_the_bucket_while_there_is_no_conductor(tmp_path: Path) -> None:
    store = MemoryStore()
    sender = Sender(
        ConductorPost(tmp_path, "run-a"), store, "run-a", generation=1, nonce="n"
    )  # fmt: skip
    shipper = RowShipper(sender, make_job())
    shipper.add([report(1)])
    shipper.close()
    assert store.list("runs/run-a/telemetry") == ["runs/run-a/telemetry/run-a-g1-n-0.step.arrow"]


def test_rows_that_were_dropped_are_complained_about_with_the_reason(tmp_path: Path) -> None:
    store = SwitchableStore("memory://full")
    sender = Sender(
        ConductorPost(tmp_path, "run-a"), store, "run-a", generation=1, nonce="n",
        max_pending_rows=2,
    )  # fmt: skip
    shipper = RowShipper(sender, make_job())
    shipper.add([report(1)])
    assert shipper.complaint() is None
    store.is_down = True
    shipper.add([report(step) for step in range(2, 9)])
    shipper.flush()
    complaint = shipper.complaint() or ""
    assert re.match(r"\d telemetry rows were dropped \(.*bucket.*cut off", complaint)
    assert complaint.endswith("training is not affected")
    shipper.close()


def test_a_conductor_that_moved_is_found_again(tmp_path: Path, conductor: Conductor) -> None:
    (tmp_path / "daemon.json").write_text('{"url":"http://127.0.0.1:1","token":"old"}')
    post = ConductorPost(tmp_path, "run-a")
    with pytest.raises(Unavailable):
        post("b", "step", b"data")
    conductor.announce(tmp_path, token="new")
    post("b", "step", b"data")
    assert conductor.taken[0][1] == "Bearer new"
