from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.checkpoint import verify
from cloudshift_lab.checkpoint.branch import branch
from cloudshift_lab.checkpoint.gc import collect
from cloudshift_lab.checkpoint.history import du, history, read_origin
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.checkpoint.pins import list_pins
from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.errors import Conflict, Corrupt, NotFound, Unavailable
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore

OWNER = "run-2:branch:owner-1"


class Watched(MemoryStore):
    """Notes what is written, and fails one write if told to."""

    def __init__(self) -> None:
        super().__init__("memory://branch")
        self.written: list[str] = []
        self.fail_at: int | None = None

    def _write(self, key: str) -> None:
        self.written.append(key)
        if self.fail_at is not None and len(self.written) > self.fail_at:
            raise Unavailable("the store went away; try again")

    def put(self, key, data):
        self._write(key)
        super().put(key, data)

    def create(self, key, data):
        self._write(key)
        return super().create(key, data)


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def parent(store, save, arrays):
    """A run with two committed steps by two ranks."""
    log = RunLog(store, "run-1")
    log.acquire(generation=1, owner="o", nonce="a")
    for step in (10, 20):
        arrays["layer.weight"] = arrays["layer.weight"] + step
        sealed = save(store, arrays, step=step, world_size=2)
        log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
    store.written.clear()
    return log


def test_a_branch_shares_every_pack_and_reads_bitwise_alike(store, parent, arrays) -> None:
    made = branch(store, "run-1", 20, "run-2", owner=OWNER)
    assert not [key for key in store.written if key.startswith("packs/")]
    first, second = open_run(store, "run-1", 20), open_run(store, "run-2")
    assert second.packs() == first.packs()
    assert (second.step, second.world_size, second.coverage) == (20, 2, "complete")
    for name in first.names():
        np.testing.assert_array_equal(first.tensor(name), second.tensor(name))
    assert [second.leaves(rank) for rank in (0, 1)] == [first.leaves(rank) for rank in (0, 1)]
    assert made.shared_bytes == sum(size for _, size in first.packs().values())
    assert made.written_bytes < 60_000


def test_its_records_lead_to_nothing_of_the_parents(store, parent) -> None:
    made = branch(store, "run-1", 20, "run-2", owner=OWNER)
    for key in store.list("runs/run-1"):
        store.delete(key)
    assert verify(store, "run-2", made.manifest_key, made.manifest_digest).ok


def test_the_owner_can_go_on_training_with_it(store, parent) -> None:
    branch(store, "run-1", 10, "run-2", owner=OWNER)
    log = RunLog(store, "run-2")
    log.acquire(generation=1, owner=OWNER, nonce="another")
    record = log.commit(generation=1, step=11, manifest_key="k", manifest_digest="d", nonce="n")
    assert [c.step for c in log.sync().commits] == [10, 11]
    assert record.generation == 1


def test_after_a_crash_at_any_write_it_is_called_again_and_done_once(store, parent) -> None:
    branch(store, "run-1", 20, "other", owner="o2")
    num_writes = len(store.written)
    assert num_writes > 6
    for fail_at in range(num_writes):
        run_id, owner = f"again-{fail_at}", f"owner-{fail_at}"
        store.written.clear()
        store.fail_at = fail_at
        log = RunLog(store, run_id, deadline_s=0.1)
        with pytest.raises(Unavailable):
            branch(store, "run-1", 20, run_id, owner=owner, deadline_s=0.1)
        store.fail_at = None
        assert not log.sync().commits
        branch(store, "run-1", 20, run_id, owner=owner)
        made = branch(store, "run-1", 20, run_id, owner=owner)
        kinds = [record.kind for record in RunLog(store, run_id).sync().records]
        assert kinds == ["acquire", "commit"]
        assert verify(store, run_id, made.manifest_key, made.manifest_digest).ok


def test_a_run_that_exists_is_not_branched_into(store, parent) -> None:
    branch(store, "run-1", 20, "run-2", owner=OWNER)
    with pytest.raises(Conflict, match="exists already"):
        branch(store, "run-1", 10, "run-2", owner="somebody else")


def test_a_step_that_is_not_there_names_those_that_are(store, parent) -> None:
    with pytest.raises(NotFound, match="has no step 15 in memory://branch"):
        branch(store, "run-1", 15, "run-2", owner=OWNER)
    assert RunLog(store, "run-2").sync().records == ()


def test_a_step_that_lost_a_pack_is_refused(store, parent) -> None:
    pack = open_run(store, "run-1", 20).manifest.packs[0]
    store.delete(pack_key(pack.blake3))
    with pytest.raises(Corrupt, match=r"0 of \d+ bytes; branch from another step"):
        branch(store, "run-1", 20, "run-2", owner=OWNER)
    assert RunLog(store, "run-2").sync().records == ()


def test_history_and_usage_say_that_a_branch_shares(store, parent) -> None:
    branch(store, "run-1", 20, "run-2", owner=OWNER)
    origin = read_origin(store, "run-2")
    assert origin is not None
    assert origin.ref == "run-1@20"
    (line,) = history(store, "run-2").lines
    assert (line.step, line.new_bytes) == (20, 0)
    assert line.stored_bytes > 0
    usage = {run.run_id: run for run in du(store).runs}
    assert usage["run-2"].only_here_bytes == 0
    assert 0 < usage["run-1"].only_here_bytes < usage["run-1"].pack_bytes


def test_a_branch_outlives_its_parents_step(store, parent, arrays) -> None:
    branch(store, "run-1", 10, "run-2", owner=OWNER)
    whole = {name: open_run(store, "run-2").tensor(name) for name in arrays}
    parent.forget(steps=[10], nonce="f")
    collect(store, grace_s=0)
    with pytest.raises(NotFound):
        open_run(store, "run-1", 10)
    kept = open_run(store, "run-2", 10)
    for name, array in whole.items():
        np.testing.assert_array_equal(kept.tensor(name), array)


def test_the_parents_step_is_pinned_until_the_branch_is_committed(store, parent) -> None:
    branch(store, "run-1", 10, "whole", owner="o2")
    store.fail_at, store.written = len(store.written) - 1, []
    with pytest.raises(Unavailable):
        branch(store, "run-1", 10, "run-2", owner=OWNER, deadline_s=0.1)
    store.fail_at = None
    parent.forget(steps=[10], nonce="f")
    collect(store, grace_s=0)
    assert [(pin.run_id, pin.step) for pin in list_pins(store)] == [("run-1", 10)]
    branch(store, "run-1", 10, "run-2", owner=OWNER)
    assert list_pins(store) == ()
    assert verify_newest(store, "run-2")


def test_a_branch_that_cannot_be_leaves_no_pin(store, parent) -> None:
    (record,) = [key for key in store.list("runs/run-1/steps/00000010") if "rank-0of2" in key
                 and key.endswith(".index")]  # fmt: skip
    store.delete(record)
    with pytest.raises((NotFound, Corrupt)):
        branch(store, "run-1", 10, "run-2", owner=OWNER)
    assert list_pins(store) == ()


def verify_newest(store, run_id) -> bool:
    commit = RunLog(store, run_id).sync().commits[-1]
    return verify(store, run_id, commit.manifest_key, commit.manifest_digest).ok
