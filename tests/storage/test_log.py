"""The run log when answers get lost: exactly one record, or an honest 'unknown'."""

from collections.abc import Callable, Sequence

import pytest

from cloudshift_lab.core.errors import Conflict, Corrupt, Fenced, Unavailable
from cloudshift_lab.storage.log import LogRecord, RunLog, fold, log_key
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Request


class ScriptedWorld:
    """A clock that only sleep moves."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def monotonic(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += max(seconds, 0.01)

    def random(self) -> float:
        return 0.5

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-1"


class LossyStore(MemoryStore):
    """Loses the answers to creates: ``before`` the effect, ``after`` it, in the order scripted."""

    def __init__(self, *script: str) -> None:
        super().__init__()
        self.script = list(script)
        self.between: Callable[[], None] = lambda: None

    def create(self, key: str, data: bytes) -> bool:
        fault = self.script.pop(0) if self.script else "none"
        if fault == "before":
            self.between()
            raise Unavailable("lost the request; try again")
        created = super().create(key, data)
        if fault == "after":
            self.between()
            raise Unavailable("lost the answer; try again")
        return created


def owned(store: MemoryStore) -> RunLog:
    log = RunLog(store, "r", ScriptedWorld(), deadline_s=10)
    log.acquire(generation=1, owner="a", nonce="acquire-a")
    return log


def commit(
    log: RunLog, step: int, nonce: str, *, generation: int = 1, digest: str = "d"
) -> LogRecord:
    return log.commit(
        generation=generation, step=step, manifest_key="m", manifest_digest=digest, nonce=nonce
    )


def test_a_commit_whose_answer_is_lost_is_found_and_not_written_twice() -> None:
    store = LossyStore("none", "after")
    record = commit(owned(store), 10, "n1")
    assert record.seq == 1
    assert store.list("runs") == [log_key("r", 0), log_key("r", 1)]


def test_a_commit_whose_request_is_lost_is_written_once() -> None:
    store = LossyStore("none", "before", "before", "after")
    assert commit(owned(store), 10, "n1").seq == 1
    assert len(store.list("runs")) == 2


def test_an_owner_fenced_between_two_attempts_does_not_commit() -> None:
    store = LossyStore("none", "before")
    log = owned(store)
    rival = RunLog(store, "r", ScriptedWorld())
    store.between = lambda: rival.acquire(generation=2, owner="b", nonce="acquire-b") and None
    with pytest.raises(Fenced):
        commit(log, 10, "n1")
    assert fold(rival.sync().records).commits == ()


def test_a_commit_that_landed_before_the_fence_is_still_reported_as_landed() -> None:
    store = LossyStore("none", "after")
    log = owned(store)
    rival = RunLog(store, "r", ScriptedWorld())
    store.between = lambda: rival.acquire(generation=2, owner="b", nonce="acquire-b") and None
    assert commit(log, 10, "n1").seq == 1


def test_a_step_older_than_the_newest_one_is_refused_and_not_written() -> None:
    log = owned(MemoryStore())
    commit(log, 20, "n1")
    with pytest.raises(Conflict, match=r"step 20 already.*must not commit another step 10"):
        commit(log, 10, "n2")
    log.acquire(generation=2, owner="b", nonce="acquire-b")
    with pytest.raises(Fenced):
        commit(log, 19, "n3", generation=2)
    assert [record.step for record in log.sync().commits] == [20]


def test_a_second_manifest_of_a_step_is_refused_to_the_generation_that_committed_it() -> None:
    log = owned(MemoryStore())
    first = commit(log, 20, "n1")
    assert commit(log, 20, "n2") == first
    with pytest.raises(Conflict, match="must not commit another step 20"):
        commit(log, 20, "n3", digest="other")
    assert log.sync().commits == (first,)


def test_a_newer_generation_may_seal_the_step_it_began_from() -> None:
    log = owned(MemoryStore())
    commit(log, 20, "n1")
    log.acquire(generation=2, owner="b", nonce="acquire-b")
    carried = commit(log, 20, "n2", generation=2)
    log.acquire(generation=3, owner="c", nonce="acquire-c")
    sealed = commit(log, 20, "n3", generation=3, digest="other")
    assert (carried.seq, sealed.seq) == (3, 5)
    assert log.sync().last_commit == sealed


def test_a_refused_step_is_judged_by_what_the_log_says_and_not_by_what_we_knew() -> None:
    store = LossyStore("none", "before")
    log, twin = owned(store), RunLog(store, "r", ScriptedWorld())
    store.between = lambda: commit(twin, 20, "late") and None
    with pytest.raises(Fenced):
        commit(log, 12, "n1")


def test_a_store_that_never_answers_ends_within_the_deadline_and_says_unknown() -> None:
    store = LossyStore("none", *["before"] * 10_000)
    log = owned(store)
    with pytest.raises(Unavailable, match=r"within 10 s.*unknown.*check the store"):
        commit(log, 10, "n1")
    assert store.script


def test_an_unknown_append_is_settled_by_asking_again_with_the_same_nonce() -> None:
    store = LossyStore("none", "after")
    log = RunLog(store, "r", ScriptedWorld(), deadline_s=0)
    log.acquire(generation=1, owner="a", nonce="acquire-a")
    with pytest.raises(Unavailable):
        commit(log, 10, "n1")
    assert commit(log, 10, "n1").seq == 1
    assert len(store.list("runs")) == 2


def test_the_log_is_read_by_key_and_never_by_listing() -> None:
    class Unlistable(MemoryStore):
        def list(self, prefix: str) -> list[str]:
            raise AssertionError("the log must not depend on listing")

    log = owned(Unlistable())
    commit(log, 10, "n1")
    assert log.sync().next_seq == 2


def test_a_record_survives_its_encoding_and_has_one_digest() -> None:
    store = MemoryStore()
    log = owned(store)
    written = commit(log, 10, "n1")
    read = RunLog(store, "r").sync().records[1]
    assert (read, read.digest) == (written, written.digest)
    assert written.digest != log.sync().records[0].digest


class Counting(MemoryStore):
    """Counts round trips: one for a batch."""

    trips = 0

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        self.trips += 1
        return super().get(key, start=start, end=end)

    def size(self, key: str) -> int | None:
        self.trips += 1
        return super().size(key)

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        before = self.trips
        found = super().get_many(requests, concurrency)
        self.trips = before + 1
        return found


@pytest.mark.parametrize("num_commits", [0, 6, 7, 8, 9, 23, 24, 25, 300, 1000])
def test_a_long_log_is_read_whole_in_few_round_trips(num_commits: int) -> None:
    store = Counting()
    log = owned(store)
    for step in range(num_commits):
        commit(log, step, f"n{step}")
    store.trips = 0
    state = RunLog(store, "r").sync()
    assert [record.step for record in state.commits] == list(range(num_commits))
    assert store.trips < 50


def test_a_log_with_a_hole_is_never_read_past_it() -> None:
    store = MemoryStore()
    log = owned(store)
    for step in range(30):
        commit(log, step, f"n{step}")
    store.delete(log_key("r", 15))
    with pytest.raises(Corrupt, match=r"has a hole.*log/000000000015"):
        RunLog(store, "r").sync()


def test_a_commit_that_slips_in_before_the_handover_refuses_it() -> None:
    """The owner is alive after all, and commits between our look and our record."""
    store = LossyStore()
    owner, mover = owned(store), RunLog(store, "r", ScriptedWorld(), deadline_s=10)
    owner.commit(generation=1, step=3, manifest_key="k3", manifest_digest="d3", nonce="n3")
    mover.sync()
    store.script = ["before"]
    store.between = lambda: (
        owner.commit(generation=1, step=4, manifest_key="k4", manifest_digest="d4", nonce="n4")
        and None
    )
    with pytest.raises(Conflict, match="is step 4, not the sealed step 3"):
        mover.handover(
            generation=1, to_url="memory://b", new_owner="b", migration_id="m", nonce="h",
            sealed=(3, "d3"),
        )  # fmt: skip
    assert owner.sync().handover_of("m") is None
