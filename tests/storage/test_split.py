"""A run's log is in one place only, whichever of the two stores somebody opens."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.checkpoint.gc import collect
from cloudshift_lab.core.errors import Fenced, Unsupported, UsageError
from cloudshift_lab.core.placement import Cloud
from cloudshift_lab.storage.lease import heartbeat_key
from cloudshift_lab.storage.log import RunLog, log_key
from cloudshift_lab.storage.logstate import pointer_in
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.split import SplitStore
from cloudshift_lab.storage.store import open_cloud_store, open_store, probe_store


@pytest.fixture
def split() -> SplitStore:
    return SplitStore(MemoryStore("memory://log"), MemoryStore("memory://data"))


def own(store: object, owner: str = "a", generation: int = 1) -> RunLog:
    log = RunLog(store, "r")  # type: ignore[arg-type]
    log.acquire(generation=generation, owner=owner, nonce=f"acquire-{owner}")
    return log


def test_logs_heartbeats_and_claims_are_in_one_store_and_the_rest_in_the_other(
    split: SplitStore,
) -> None:
    own(split)
    split.create("runs/r/claim.json", b"claim")
    split.put(heartbeat_key("r", 1), b"beat")
    split.put("runs/r/steps/1/rank-0of1.1.json", b"record")
    split.put("packs/aa/pack", b"pack")
    assert split.log.list("") == [
        "runs/r/claim.json", "runs/r/hb/1.json", "runs/r/log/000000000000.json",
    ]  # fmt: skip
    assert split.data.list("") == [
        "packs/aa/pack", "runs/r/log/000000000000.json", "runs/r/steps/1/rank-0of1.1.json",
    ]  # fmt: skip
    assert split.url == "memory://data"
    assert split.list("runs/r") == [
        "runs/r/claim.json", "runs/r/hb/1.json", "runs/r/log/000000000000.json",
        "runs/r/steps/1/rank-0of1.1.json",
    ]  # fmt: skip


def test_who_opens_the_data_alone_is_told_where_the_log_is(split: SplitStore) -> None:
    own(split)
    alone = RunLog(split.data, "r")
    with pytest.raises(UsageError, match="kept at memory://log"):
        alone.sync()
    with pytest.raises(UsageError, match="kept at memory://log"):
        alone.acquire(generation=2, owner="thief", nonce="n")
    assert RunLog(split, "r").sync().owner == "a"


def test_a_log_that_began_in_the_data_stays_there(split: SplitStore) -> None:
    old = own(split.data)
    newer = own(split, owner="b", generation=2)
    assert split.log.list("") == []
    assert newer.sync().records[-1].owner == "b"
    with pytest.raises(Fenced):
        old.release(generation=1, nonce="late")


def test_two_logs_of_one_run_cannot_begin_at_once(split: SplitStore) -> None:
    """Between the question where the log is and its first record, somebody began it in the data."""
    late = RunLog(split, "r")
    assert late.sync().owner is None
    own(split.data, owner="first")
    with pytest.raises(Fenced):
        late.acquire(generation=1, owner="second", nonce="n")
    assert split.log.list("") == []


def test_a_log_that_is_somewhere_else_again_is_refused(split: SplitStore) -> None:
    own(split)
    other = SplitStore(MemoryStore("memory://another-log"), split.data)
    with pytest.raises(UsageError, match="set log_url"):
        RunLog(other, "r").sync()


def test_a_view_without_retries_finds_the_same_logs(split: SplitStore) -> None:
    own(split)
    assert RunLog(split.once(), "r").sync().owner == "a"
    own_in_data = SplitStore(MemoryStore("memory://log-2"), MemoryStore("memory://data-2"))
    own(own_in_data.data)
    assert RunLog(own_in_data, "r").sync().owner == "a"
    assert RunLog(own_in_data.once(), "r").sync().owner == "a"


def test_both_stores_are_probed(split: SplitStore) -> None:
    probe_store(split)
    assert split.list("probe") == []

    class Overwriting(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    for log, data in ((Overwriting(), MemoryStore()), (MemoryStore(), Overwriting())):
        with pytest.raises(Unsupported, match="two owners could both win"):
            probe_store(SplitStore(log, data))


def test_a_record_is_no_pointer(split: SplitStore) -> None:
    own(split)
    assert pointer_in(split.get(log_key("r", 0))) is None
    pointer = pointer_in(split.data.get(log_key("r", 0)))
    assert pointer is not None and pointer.log_url == "memory://log"


def test_a_cloud_with_a_log_url_opens_both() -> None:
    cloud = Cloud("c", "a cloud", "memory://test-split-data", log_url="memory://test-split-log")
    store = open_cloud_store(cloud)
    own(store)
    assert RunLog(open_store("memory://test-split-log"), "r").sync().owner == "a"
    plain = open_cloud_store(msgspec.structs.replace(cloud, log_url=""))
    assert not isinstance(plain, SplitStore)


def test_a_collector_that_opened_the_data_alone_deletes_nothing(split: SplitStore) -> None:
    own(split)
    split.put("packs/aa/" + "a" * 64 + ".pack", b"pack")
    for _ in range(3):
        with pytest.raises(UsageError, match="kept at memory://log"):
            collect(split.data, grace_s=0.0)
    assert len(split.list("packs")) == 1
