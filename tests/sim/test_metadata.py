"""The emulator refuses what the real services refuse, and plays only what it was told."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudshift_lab.core.errors import Conflict, Unavailable, UsageError
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines.local import write_handle
from cloudshift_lab.engines.notices_http import SIMULATED_HEADER
from cloudshift_lab.engines.notices_watch import dialect_of
from cloudshift_lab.engines.process import process_start_time
from cloudshift_lab.sim.clouds import AWS_SIM, GCP_SIM, SimClouds
from cloudshift_lab.sim.metadata import (
    MetadataServer,
    PlayedMachines,
    Preempt,
    end_machine,
    look,
    preempt,
)

TOKEN = "/latest/api/token"
ACTION = "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
GOOGLE = {"Metadata-Flavor": "Google"}


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with MetadataServer() as started:
        yield started


def ask(
    server: MetadataServer, method: str, path: str, headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> tuple[int, bytes, Any]:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", ACTION, {}, 401),
        ("GET", ACTION, {"X-aws-ec2-metadata-token": "guessed"}, 401),
        ("PUT", TOKEN, {}, 400),
        ("PUT", TOKEN, {TTL: "0"}, 400),
        ("PUT", TOKEN, {TTL: "999999"}, 400),
        ("PUT", TOKEN, {TTL: "60", "X-Forwarded-For": "10.0.0.1"}, 403),
        ("POST", ACTION, {}, 405),
        ("GET", PREEMPTED, {}, 403),
        ("GET", PREEMPTED, {**GOOGLE, "X-Forwarded-For": "10.0.0.1"}, 403),
        ("GET", "/computeMetadata/v1/instance/else", GOOGLE, 404),
        ("GET", f"{EVENTS}?api-version=2020-07-01", {}, 400),
        ("GET", EVENTS, {"Metadata": "true"}, 400),
        ("POST", f"{EVENTS}?api-version=2020-07-01", {"Metadata": "true"}, 400),
        ("GET", "/else", {}, 404),
        ("POST", "/simulated/state", {}, 403),
        ("POST", "/simulated/else", {SIMULATED_HEADER: "true"}, 404),
    ],
)
def test_what_the_real_services_refuse_is_refused(
    server: MetadataServer, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    found, _, told = ask(server, method, path, headers)
    assert found == status
    assert told[SIMULATED_HEADER] == "true", "also a refusal says that it is simulated"


def test_a_token_opens_the_metadata_until_it_runs_out(server: MetadataServer) -> None:
    _, token, _ = ask(server, "PUT", TOKEN, {TTL: "1"})
    opened = {"x-AWS-ec2-metadata-token": token.decode()}
    assert ask(server, "GET", ACTION, opened)[0] == 404
    until = time.monotonic() + 60
    while ask(server, "GET", ACTION, opened)[0] != 401:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_aws_says_when_in_its_own_words(server: MetadataServer) -> None:
    _, token, _ = ask(server, "PUT", TOKEN, {TTL: "60"})
    opened = {"X-aws-ec2-metadata-token": token.decode()}
    ask(server, "GET", ACTION, opened)
    (event,) = preempt(server.port, Preempt(in_s=100.0))
    _, body, _ = ask(server, "GET", ACTION, opened)
    told = json.loads(body)
    assert told["action"] == "terminate"
    assert told["time"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.deadline))


def test_google_answers_a_question_that_waits_when_there_is_news(server: MetadataServer) -> None:
    _, word, headers = ask(server, "GET", PREEMPTED, GOOGLE)
    assert (word, headers["Metadata-Flavor"]) == (b"FALSE", "Google")
    waiting = f"{PREEMPTED}?wait_for_change=true&timeout_sec=0.1&last_etag={headers['ETag']}"
    assert ask(server, "GET", waiting, GOOGLE)[1] == b"FALSE", "its patience is over"
    preempt(server.port, Preempt(in_s=30.0))
    _, word, after = ask(server, "GET", waiting.replace("=0.1", "=60"), GOOGLE)
    assert word == b"TRUE"
    assert after["ETag"] != headers["ETag"]


def test_azure_lists_the_events_of_all_machines_with_whom_they_concern(
    server: MetadataServer,
) -> None:
    path, asks = f"{EVENTS}?api-version=2020-07-01", {"Metadata": "true"}
    for machine in ("a", "b"):
        ask(server, "GET", f"/machine/{machine}{path}", asks)
    preempt(server.port, Preempt(in_s=60.0, machine="a"))
    _, body, _ = ask(server, "GET", f"/machine/b{path}", asks)
    (event,) = json.loads(body)["Events"]
    assert (event["EventType"], event["Resources"]) == ("Preempt", ["a"])
    assert event["EventStatus"] == "Scheduled"
    start = json.dumps({"StartRequests": [{"EventId": event["EventId"]}]}).encode()
    assert ask(server, "POST", f"/machine/b{path}", asks, start)[0] == 404, "not its event"
    assert ask(server, "POST", f"/machine/a{path}", asks, start)[0] == 200
    _, body, _ = ask(server, "GET", f"/machine/a{path}", asks)
    assert json.loads(body)["Events"][0]["EventStatus"] == "Started"


def test_taking_away_what_is_not_there_is_a_conflict(server: MetadataServer) -> None:
    with pytest.raises(Conflict, match="start a run there first"):
        preempt(server.port, Preempt(in_s=30.0))


def test_an_emulator_that_is_not_there_is_said_to_be_away() -> None:
    with MetadataServer() as server:
        port = server.port
    with pytest.raises(Unavailable, match="clouds down"):
        look(port)


# -- ending what runs on a machine that goes -------------------------------------------------------


def test_only_machines_that_are_to_be_ended_fall_due_and_each_once() -> None:
    machines = PlayedMachines()
    for name in ("a", "b"):
        machines.see(name)
    machines.preempt(Preempt(in_s=0.0, machine="a", kills=True))
    machines.preempt(Preempt(in_s=0.0, machine="b"))
    assert machines.due() == ("a",)
    assert machines.due() == ()
    assert machines.state().machines == ("b",)


def test_the_process_of_one_node_is_ended_and_no_other(tmp_path: Path) -> None:
    workdirs = [tmp_path / "runs" / "run-1" / "attempts" / "1" / part for part in ("", "node-1")]
    processes = []
    for workdir in workdirs:
        workdir.mkdir(parents=True, exist_ok=True)
        code = "import time; time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        processes.append(process)
        job = JobSpec(
            run_id="run-1", generation=1, owner="o", placement=Placement("a", "b", "m"),
            store_url="", script="", home=str(tmp_path), workdir=str(workdir), seed=0,
        )  # fmt: skip
        write_handle(job, process.pid, process_start_time(process.pid) or "")
    try:
        assert end_machine(tmp_path, "run-1.1.1") == f"killed process {processes[1].pid}"
        assert processes[1].wait(timeout=60) != 0
        assert processes[0].poll() is None
        assert "nothing" in end_machine(tmp_path, "run-1.2.0")
    finally:
        for process in processes:
            process.kill()
            process.wait()


# -- the simulated clouds --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dialect"), [(AWS_SIM, "aws"), (GCP_SIM, "gcp")])
def test_a_simulated_clouds_machines_hear_of_their_end_from_the_emulator(
    simulated_home: Path, name: str, dialect: str
) -> None:
    settings = load_clouds(simulated_home).find(name).notices
    assert settings is not None
    assert settings.dialect == dialect
    assert settings.url.startswith("http://127.0.0.1:")
    machine = dialect_of(settings, {}, REAL_WORLD, machine=f"run-{dialect}.1.0")
    assert machine is not None
    assert machine.look() == ()
    (event,) = SimClouds(simulated_home).preempt(name, 25.0, run_id=f"run-{dialect}")
    assert event.machine == f"{name}.run-{dialect}.1.0"
    (notice,) = machine.look()
    assert notice.simulated
    assert notice.left_s is not None and 20.0 < notice.left_s <= 30.0


def test_a_real_cloud_is_not_taken_away(simulated_home: Path) -> None:
    with pytest.raises(UsageError, match="no simulated cloud"):
        SimClouds(simulated_home).preempt("aws", 30.0)


def test_clouds_that_are_down_cannot_be_taken_away(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="clouds up"):
        SimClouds(tmp_path).preempt(AWS_SIM, 30.0)


def test_the_emulator_ends_a_real_process_when_its_time_is_over(simulated_home: Path) -> None:
    workdir = simulated_home / "runs" / "run-k" / "attempts" / "1"
    workdir.mkdir(parents=True)
    code = "import time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    job = JobSpec(
        run_id="run-k", generation=1, owner="o", placement=Placement(AWS_SIM, "b", "m"),
        store_url="", script="", home=str(simulated_home), workdir=str(workdir), seed=0,
    )  # fmt: skip
    write_handle(job, process.pid, process_start_time(process.pid) or "")
    try:
        settings = load_clouds(simulated_home).find(AWS_SIM).notices
        assert settings is not None
        machine = dialect_of(settings, {}, REAL_WORLD, machine="run-k.1.0")
        assert machine is not None
        machine.look()
        SimClouds(simulated_home).preempt(AWS_SIM, 0.5, run_id="run-k", kills=True)
        assert process.wait(timeout=60) == -9
    finally:
        process.kill()
        process.wait()
