"""Every store we ship keeps the store contract, carries a run log, and lets one racer win."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from cloudshift_lab.sim.contracts import LogContract, StoreContract
from cloudshift_lab.storage.log import LogBase, RunLog
from cloudshift_lab.storage.split import SplitStore
from cloudshift_lab.storage.store import Store, open_store

KINDS = ["memory", "file", "s3", "gs", "az", "etcd"]
Address = Callable[[str], tuple[str, dict[str, object]]]


@pytest.fixture(params=[*KINDS, "split"])
def store(request: pytest.FixtureRequest, fresh_store: Callable[[str], Store]) -> Store:
    """One of each kind; ``split`` is a folder whose logs are in etcd."""
    if request.param == "split":
        return SplitStore(fresh_store("etcd"), fresh_store("file"))
    return fresh_store(request.param)


class TestStore(StoreContract):
    pass


class TestLog(LogContract):
    pass


RACER = """
import json, sys
from cloudshift_lab.storage.store import open_store
url, options, racer = json.loads(sys.stdin.readline())
store = open_store(url, options)
store.size("warm-up")
print("ready", flush=True)
for line in sys.stdin:
    key = line.strip()
    print(json.dumps(store.create(key, f"{racer} {key}".encode())), flush=True)
"""


@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_of_four_racing_processes_wins_each_create(kind: str, store_address: Address) -> None:
    url, options = store_address(kind)
    judge = open_store(url, options)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for number, racer in enumerate(racers):
            say(racer, json.dumps([url, options, f"racer-{number}"]))
        assert [hear(racer) for racer in racers] == ["ready"] * 4
        for round_number in range(30):
            key = f"raced/{round_number}"
            for racer in racers:
                say(racer, key)
            won = [json.loads(hear(racer)) for racer in racers]
            assert won.count(True) == 1, f"round {round_number}: {won}"
            assert judge.get(key) == f"racer-{won.index(True)} {key}".encode()
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def say(racer: "subprocess.Popen[str]", line: str) -> None:
    assert racer.stdin is not None
    racer.stdin.write(f"{line}\n")
    racer.stdin.flush()


def hear(racer: "subprocess.Popen[str]") -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


BODY_IN_ONE_PIECE = "ignore:Sending a large body directly:ResourceWarning"


@pytest.mark.parametrize(
    "kind",
    [
        "file",
        "s3",
        pytest.param("gs", marks=pytest.mark.filterwarnings(BODY_IN_ONE_PIECE)),
        "az",
    ],
)
def test_an_object_larger_than_one_request_arrives_whole(
    kind: str, fresh_store: Callable[[str], Store]
) -> None:
    data = bytes(range(256)) * (70 * 2**12)
    store = fresh_store(kind)
    store.put("large", data)
    assert store.get("large", start=65 * 2**20, end=65 * 2**20 + 5) == data[:5]
    assert store.get("large") == data


@pytest.mark.parametrize(("here", "there"), [("s3", "gs"), ("gs", "az"), ("az", "s3")])
def test_a_run_moves_from_one_protocol_to_the_other(
    here: str, there: str, fresh_store: Callable[[str], Store]
) -> None:
    source, target = fresh_store(here), fresh_store(there)
    log = RunLog(source, "run-1")
    log.acquire(generation=1, owner="a", nonce="a")
    given = log.handover(
        generation=1, to_url=target.url, new_owner="b", migration_id="move-1", nonce="m:commit"
    )
    base = LogBase(url=source.url, seq=given.seq, digest=given.digest)
    taken = RunLog(target, "run-1").acquire(generation=2, owner="b", nonce="b", base=base)
    assert (taken.seq, taken.generation) == (0, 2)
    assert RunLog(source, "run-1").sync().home_url == target.url
