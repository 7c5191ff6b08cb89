"""A real etcd: away, frozen, killed, full. Errors are ours and in time; no record is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Exhausted, Fenced, Unavailable, Unsupported, UsageError
from cloudshift_lab.sim.proxy import FaultyProxy
from cloudshift_lab.sim.servers import Server, start_server, stop_server
from cloudshift_lab.storage.lease import Lease
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.split import SplitStore
from cloudshift_lab.storage.store import Store, open_store, probe_store

CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("a"),
    "put": lambda store: store.put("a", b"x"),
    "create": lambda store: store.create("a", b"x"),
    "size": lambda store: store.size("a"),
    "list": lambda store: store.list("a"),
    "delete": lambda store: store.delete("a"),
    "probe": probe_store,
}
Start = Callable[..., Server]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Start]:
    """Starts an etcd of the test's own; again with the same name and port: with its data."""
    servers: list[Server] = []

    def start(**more: object) -> Server:
        try:
            server = start_server(tmp_path, "etcd", "etcd", **more)  # type: ignore[arg-type]
        except Unsupported as missing:
            pytest.skip(missing.message)
        servers.append(server)
        return server

    yield start
    for server in servers:
        stop_server(server)


def reach(server: Server, deadline_s: float = 30, port: int | None = None) -> Store:
    return open_store(f"etcd://127.0.0.1:{port or server.port}/lab", deadline_s=deadline_s)


def kill(server: Server) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    stop_server(server)


@pytest.mark.parametrize("call", CALLS)
def test_an_etcd_that_is_away_is_unavailable_in_time(call: str) -> None:
    pytest.importorskip("etcd3gw")
    store = open_store("etcd://127.0.0.1:9/lab", deadline_s=1)
    with pytest.raises(Unavailable, match="within 1 s") as caught:
        CALLS[call](store)
    assert caught.value.message.startswith("etcd://127.0.0.1:9/lab")
    assert caught.value.message.endswith("check the network and the endpoint, then try again")


def test_a_frozen_etcd_is_unavailable_and_serves_again_when_it_thaws(etcd: Start) -> None:
    server = etcd()
    reach(server).put("a", b"before")
    hasty = reach(server, deadline_s=1)
    server.freeze()
    for call in ("get", "put", "create"):
        with pytest.raises(Unavailable, match="within 1 s"):
            CALLS[call](hasty)
    server.thaw()
    assert reach(server).size("a") is not None


def test_a_log_outlives_etcds_death_and_goes_on_after_it(etcd: Start) -> None:
    server = etcd()
    store = reach(server)
    log = RunLog(store, "r")
    log.acquire(generation=1, owner="a", nonce="acquire")
    for step in range(5):
        log.commit(
            generation=1, step=step, manifest_key="m", manifest_digest="d", nonce=f"c-{step}"
        )
    kill(server)
    brief = RunLog(reach(server, deadline_s=1), "r", deadline_s=1)
    with pytest.raises(Unavailable):
        brief.commit(generation=1, step=5, manifest_key="m", manifest_digest="d", nonce="c-5")
    again = etcd(port=server.port)
    log.commit(generation=1, step=5, manifest_key="m", manifest_digest="d", nonce="c-5")
    state = RunLog(reach(again), "r").sync()
    assert [commit.step for commit in state.commits] == list(range(6))
    RunLog(reach(again), "r").acquire(generation=2, owner="b", nonce="acquire-b")
    with pytest.raises(Fenced):
        log.commit(generation=1, step=6, manifest_key="m", manifest_digest="d", nonce="c-6")


def test_an_owner_whose_etcd_is_away_stops_publishing_by_its_own_clock(etcd: Start) -> None:
    class Clock:
        time_s = 0.0

        def now(self) -> float:
            return self.time_s

        def monotonic(self) -> float:
            return self.time_s

        def sleep(self, seconds: float) -> None:
            self.time_s += seconds

        def random(self) -> float:
            return 0.5

        def new_id(self, prefix: str) -> str:
            return prefix

    server, clock = etcd(), Clock()
    lease = Lease(reach(server, deadline_s=1), "r", 1, clock, ttl_s=30)
    lease.beat()
    kill(server)
    with pytest.raises(Unavailable):
        lease.beat()
    assert lease.may_publish()
    clock.time_s = 20.1
    assert not lease.may_publish()


def test_a_lost_answer_to_a_create_is_known_to_be_ours(etcd: Start) -> None:
    server = etcd()
    with FaultyProxy(server.port) as proxy:
        store = reach(server, port=proxy.port)
        proxy.inject("lose", "busy")
        assert store.create("a", b"ours, nonce 1")
        proxy.inject("lose")
        assert not store.create("a", b"theirs, nonce 2")
        assert proxy.num_faults == 3
        log = RunLog(store, "r")
        log.acquire(generation=1, owner="a", nonce="acquire")
        for step in range(4):
            proxy.inject("lose", "busy")
            log.commit(
                generation=1, step=step, manifest_key="m", manifest_digest="d", nonce=f"c-{step}"
            )
        assert RunLog(reach(server), "r").sync().next_seq == 5


def test_the_next_host_is_asked_when_one_is_away(etcd: Start) -> None:
    server = etcd()
    store = open_store(f"etcd://127.0.0.1:9,127.0.0.1:{server.port}/lab")
    assert store.create("a", b"x")
    assert store.get("a") == b"x"


def test_a_full_etcd_is_exhausted_and_can_still_be_read(etcd: Start) -> None:
    server = etcd(env={"ETCD_QUOTA_BACKEND_BYTES": "200000"})
    store = reach(server)
    with pytest.raises(Exhausted, match="free some"):
        for number in range(40):
            store.put(f"k/{number}", bytes(100_000))
    assert len(store.get("k/0")) == 100_000


def test_large_objects_are_refused_with_a_reason(etcd: Start) -> None:
    store = reach(etcd())
    with pytest.raises(UsageError, match="etcd takes up to"):
        store.put("large", bytes(2**20 + 1))


def test_a_run_with_its_log_in_etcd_waits_for_it_and_keeps_its_data(etcd: Start) -> None:
    server = etcd()
    store = SplitStore(reach(server, deadline_s=1), MemoryStore("memory://data"))
    RunLog(store, "r").acquire(generation=1, owner="a", nonce="acquire")
    server.freeze()
    store.put("packs/aa/pack", b"x")
    with pytest.raises(Unavailable, match="etcd://"):
        store.get("runs/r/log/000000000001.json")
    server.thaw()
    assert RunLog(store, "r").sync().owner == "a"
