import threading

import pytest

from cloudshift_lab.core.errors import Unavailable, UsageError
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.telemetry.batch import decode
from cloudshift_lab.telemetry.schema import EventRow, StepRow
from cloudshift_lab.telemetry.spool import Sender, replay, spool_key


class Conductor:
    """Takes batches in by id, as the real one does; can be away."""

    def __init__(self):
        self.is_away = False
        self.loses_answers = False
        self.batches = {}

    def ingest(self, batch_id, table, data):
        decode(table, data)
        is_new = batch_id not in self.batches
        self.batches.setdefault(batch_id, (table, data))
        return is_new

    def post(self, batch_id, table, data):
        if self.is_away:
            raise ConnectionRefusedError("connection refused")
        self.ingest(batch_id, table, data)
        if self.loses_answers:
            raise TimeoutError("no answer")

    def steps(self):
        tables = [decode(table, data) for table, data in self.batches.values() if table == "step"]
        return sorted(step for table in tables for step in table.column("step").to_pylist())


class FullStore(MemoryStore):
    def put(self, key, data):
        raise Unavailable("the bucket is away; try again")


def step_row(step, **changes):
    return StepRow(
        **({"ts": 1.0, "run_id": "r", "generation": 1, "rank": 0, "step": step} | changes)
    )


def sender(post, store, **limits):
    return Sender(post, store, "r", generation=1, nonce="abc", **limits)


def test_rows_reach_a_conductor_that_is_there():
    conductor, store = Conductor(), MemoryStore()
    mine = sender(conductor.post, store)
    for step in range(5):
        mine.add(step_row(step))
    mine.add(EventRow(ts=1.0, run_id="r", generation=1, kind="start"))
    flushed = mine.flush()
    assert (flushed.num_posted, flushed.num_spooled, flushed.num_pending) == (6, 0, 0)
    assert conductor.steps() == [0, 1, 2, 3, 4]
    assert sorted(table for table, _ in conductor.batches.values()) == ["event", "step"]
    assert store.list("") == []


def test_rows_are_spooled_while_the_conductor_is_away_and_replayed_once_it_is_back():
    conductor, store = Conductor(), MemoryStore()
    conductor.is_away = True
    mine = sender(conductor.post, store)
    for step in range(4):
        mine.add(step_row(step))
        mine.flush()
    assert mine.num_pending == 0
    assert store.list("runs/r/telemetry") == [
        spool_key("r", f"r-g1-abc-{n}", "step") for n in range(4)
    ]
    replayed = replay(store, "r", conductor.ingest)
    assert (replayed.num_ingested, replayed.num_seen_before) == (4, 0)
    assert conductor.steps() == [0, 1, 2, 3]
    assert store.list("") == []


def test_a_batch_whose_answer_was_lost_is_stored_once():
    conductor, store = Conductor(), MemoryStore()
    conductor.loses_answers = True
    mine = sender(conductor.post, store)
    mine.add(step_row(7))
    assert mine.flush().num_spooled == 1
    replayed = replay(store, "r", conductor.ingest)
    assert (replayed.num_ingested, replayed.num_seen_before) == (0, 1)
    assert conductor.steps() == [7]


def test_rows_wait_in_memory_when_both_ways_are_shut_and_leave_later_in_order():
    conductor = Conductor()
    conductor.is_away = True
    mine = sender(conductor.post, FullStore())
    mine.add(step_row(1))
    assert mine.flush().num_pending == 1
    assert "bucket" in mine.last_error
    conductor.is_away = False
    mine.add(step_row(2))
    assert mine.flush().num_posted == 2
    assert conductor.steps() == [1, 2]
    assert mine.last_error is None


def test_beyond_the_cap_rows_are_dropped_and_counted():
    conductor = Conductor()
    conductor.is_away = True
    mine = sender(conductor.post, None, max_pending_rows=10)
    for step in range(25):
        mine.add(step_row(step))
        mine.flush()
    assert (mine.num_pending, mine.num_dropped) == (10, 15)
    conductor.is_away = False
    mine.flush()
    assert conductor.steps() == list(range(10))
    mine.add(step_row(99))
    assert mine.flush().num_posted == 1


def test_a_row_that_cannot_be_encoded_is_dropped_alone():
    conductor = Conductor()
    mine = sender(conductor.post, None)
    for step in (1, 2, "three", 4):
        mine.add(step_row(step))
    mine.flush()
    assert conductor.steps() == [1, 2, 4]
    assert (mine.num_dropped, mine.num_pending) == (1, 0)


def test_large_flushes_are_cut_into_batches_of_the_limit():
    conductor = Conductor()
    mine = sender(conductor.post, None, max_batch_rows=4)
    for step in range(10):
        mine.add(step_row(step))
    mine.flush()
    sizes = [decode(table, data).num_rows for table, data in conductor.batches.values()]
    assert sizes == [4, 4, 2]


def test_no_row_is_lost_or_doubled_when_threads_add_while_another_flushes():
    conductor = Conductor()
    mine = sender(conductor.post, None)

    def emit(start):
        for step in range(start, start + 500):
            mine.add(step_row(step))

    threads = [threading.Thread(target=emit, args=(start,)) for start in (0, 500, 1000)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        mine.flush()
    mine.flush()
    assert conductor.steps() == list(range(1500))
    assert mine.num_pending == 0


def test_a_replay_that_fails_keeps_what_it_did_not_take_in():
    store = MemoryStore()
    mine = sender(None, store)
    for step in range(3):
        mine.add(step_row(step))
        mine.flush()
    conductor = Conductor()

    def ingest(batch_id, table, data):
        if len(conductor.batches) == 1:
            raise Unavailable("database is busy; try again")
        return conductor.ingest(batch_id, table, data)

    with pytest.raises(Unavailable):
        replay(store, "r", ingest)
    assert len(store.list("runs/r/telemetry")) == 2
    assert replay(store, "r", conductor.ingest).num_ingested == 2
    assert conductor.steps() == [0, 1, 2]


def test_a_damaged_batch_is_moved_aside_and_the_others_go_in():
    conductor, store = Conductor(), MemoryStore()
    store.put(spool_key("r", "r-g1-abc-0", "step"), b"torn")
    mine = sender(None, store)
    mine.add(step_row(1))
    mine._next_number = 1
    mine.flush()
    replayed = replay(store, "r", conductor.ingest)
    assert replayed.damaged == ("runs/r/telemetry-damaged/r-g1-abc-0.step.arrow",)
    assert store.get(replayed.damaged[0]) == b"torn"
    assert replayed.num_ingested == 1
    assert store.list("runs/r/telemetry") == []


def test_keys_that_are_no_spooled_batches_are_left_alone():
    conductor, store = Conductor(), MemoryStore()
    for key in (
        "runs/r/telemetry/notes.txt",
        "runs/r/telemetry/x.gpu.arrow",
        "runs/r2/telemetry/x",
    ):
        store.put(key, b"x")
    assert replay(store, "r", conductor.ingest).num_ingested == 0
    assert len(store.list("")) == 3


def test_limits_below_one_row_are_refused():
    with pytest.raises(UsageError, match="at least 1 row"):
        sender(None, None, max_pending_rows=0)
