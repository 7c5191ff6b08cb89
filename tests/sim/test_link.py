"""A limited link: how long things take at least, what is counted, and what a cut does."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.home import load_clouds, store_options
from cloudshift_lab.engines.process import process_start_time
from cloudshift_lab.sim.clouds import AWS_SIM, GCP_SIM, SimClouds
from cloudshift_lab.sim.link import Door, Link, LinkSpec
from cloudshift_lab.storage.store import open_cloud_store

PATIENCE_S = 60.0


class Answer(BaseHTTPRequestHandler):
    """``GET /n`` answers n bytes; PUT takes what comes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say(os.urandom(int(self.path[1:])))

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(b"")

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def spec(port: int, **limits: float) -> LinkSpec:
    return LinkSpec((Door("a", port, up="in", down="out"),), **limits)


Connect = Callable[[Link], http.client.HTTPConnection]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections through door ``a`` that are closed in the end."""
    made = []

    def new(link: Link) -> http.client.HTTPConnection:
        made.append(http.client.HTTPConnection("127.0.0.1", link.ports["a"], timeout=PATIENCE_S))
        return made[-1]

    yield new
    for connection in made:
        connection.close()


def fetch(connection: http.client.HTTPConnection, num_bytes: int) -> int:
    connection.request("GET", f"/{num_bytes}")
    return len(connection.getresponse().read())


def test_a_connection_costs_a_round_trip_and_each_request_another(port, connect):
    with Link(spec(port, rtt_s=0.1)) as link:
        connection, began = connect(link), time.monotonic()
        assert fetch(connection, 10) == 10
        first_s = time.monotonic() - began
        assert fetch(connection, 10) == 10
        assert first_s >= 0.2
        assert time.monotonic() - began - first_s >= 0.1


def test_all_connections_of_a_direction_share_its_rate_and_the_other_one_has_its_own(port, connect):
    num_bytes = 1_000_000
    with Link(spec(port, bytes_per_s=8e6)) as link:

        def get() -> None:
            fetch(connect(link), num_bytes)

        threads, began = [threading.Thread(target=get) for _ in range(4)], time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.monotonic() - began
        count = link.count()
        assert took_s >= 4 * num_bytes / 8e6 * 0.95
        assert 4 * num_bytes < count.out_bytes < 4 * num_bytes + 4000
        assert 0 < count.in_bytes < 4000
        put = connect(link)
        put.request("PUT", "/", os.urandom(num_bytes))
        assert put.getresponse().status == 200
        assert num_bytes < link.count().in_bytes - count.in_bytes < num_bytes + 1000
        assert link.count().num_bytes == link.count().out_bytes + link.count().in_bytes


def test_a_new_connection_needs_round_trips_to_get_to_speed(port, connect):
    with Link(spec(port, rtt_s=0.05)) as link:
        connection, began = connect(link), time.monotonic()
        fetch(connection, 200_000)
        slow_s = time.monotonic() - began
        assert slow_s >= 0.05 * (1 + 1 + 3), "10 packets, 20, 40, 80: four flights of 50 ms"


def test_nothing_gets_through_a_cut_and_all_of_it_after(port, connect):
    with Link(spec(port)) as link:
        connection = connect(link)
        fetch(connection, 1)
        link.cut()
        before = link.count()
        connection.request("GET", "/5")
        assert connection.sock is not None
        connection.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        assert link.count() == before
        connection.sock.settimeout(PATIENCE_S)
        link.restore()
        assert connection.sock.recv(8) == b"HTTP/1.1"


def test_a_reset_ends_connections_and_lets_new_ones_through(port, connect):
    with Link(spec(port)) as link:
        old = connect(link)
        fetch(old, 1)
        link.reset()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            fetch(old, 1)
        assert fetch(connect(link), 3) == 3


def test_where_nobody_listens_the_connection_ends(connect):
    with Link(spec(1)) as link, pytest.raises((ConnectionError, http.client.HTTPException)):
        fetch(connect(link), 1)


def test_the_process_goes_with_the_link_even_while_something_is_under_way(port, connect, capfd):
    with Link(spec(port, rtt_s=0.1, bytes_per_s=1e6)) as link:
        connection = connect(link)
        connection.request("GET", "/1000000")
    assert process_start_time(link.pid) is None
    with pytest.raises(Unavailable, match="has ended"):
        link.count()
    assert capfd.readouterr().err == ""


def test_clouds_that_are_joined_are_reached_over_the_link_from_outside_only(tmp_path: Path):
    clouds = SimClouds(tmp_path)
    with pytest.raises(Unavailable, match="clouds up"), clouds.joined(rtt_s=0, bytes_per_s=None):
        pass
    clouds.up()
    try:
        with clouds.joined(rtt_s=0.0, bytes_per_s=None) as link:
            for name, towards in ((AWS_SIM, "in_bytes"), (GCP_SIM, "out_bytes")):
                cloud = load_clouds(tmp_path).find(name)
                before = link.count()
                open_cloud_store(cloud, inside=True).put("a/b", b"x" * 100_000)
                assert link.count() == before
                assert open_cloud_store(cloud).get("a/b") == b"x" * 100_000
                between = link.count()
                assert between.num_bytes - before.num_bytes > 100_000
                open_cloud_store(cloud).put("a/c", b"y" * 100_000)
                after = link.count()
                assert getattr(after, towards) - getattr(between, towards) > 100_000
        for cloud in load_clouds(tmp_path).clouds[1:]:
            assert store_options(cloud, inside=False) == store_options(cloud)
    finally:
        clouds.down()
