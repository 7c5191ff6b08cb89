"""The spool beside the database, the archive it becomes, and getting rows back from both."""

import pyarrow as pa
import pytest

from cloudshift_lab.core.errors import Corrupt, Unavailable
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.telemetry import segments
from cloudshift_lab.telemetry.archive import archived, read_archive
from cloudshift_lab.telemetry.batch import decode, encode
from cloudshift_lab.telemetry.intake import Offered
from cloudshift_lab.telemetry.schema import EventRow, StepRow
from cloudshift_lab.telemetry.segments import Segments, read
from cloudshift_lab.telemetry.store import TelemetryStore
from cloudshift_lab.telemetry.upkeep import Upkeep

T0 = 1_800_000_000.0
HOUR_S = 3600.0


class Clock:
    """A world whose time is set by hand."""

    def __init__(self, at=T0):
        self.at = at

    def now(self):
        return self.at

    def monotonic(self):
        return self.at

    def new_id(self, prefix):
        return REAL_WORLD.new_id(prefix)


def offered(name, steps, table="step"):
    rows = [
        StepRow(ts=T0 + s, run_id="r", generation=1, rank=0, step=s, sections={"f": 0.5})
        for s in steps
    ]
    return Offered(name, table, decode(table, encode(table, rows)))


def steps_of(records):
    return [step for record in records for step in record.rows["step"].to_pylist()]


def put(store, number, steps=range(10)):
    rows = [StepRow(ts=T0 + s, run_id="r", generation=1, rank=0, step=s) for s in steps]
    return store.ingest(f"s-{number}", "step", encode("step", rows))


def count(store, what="count(*)", table="step"):
    return store.sql(f"SELECT {what} AS n FROM {table}").column("n")[0].as_py()


def test_a_segment_gives_back_what_was_appended_each_batch_once(tmp_path):
    spool = Segments(tmp_path, "x")
    spool.append([offered("a", [1, 2]), offered("b", [3])], T0)
    spool.append([offered("b", [3]), offered("c", [4])], T0)
    (path,) = spool.everything()
    records = list(read(path))
    assert steps_of(records) == [1, 2, 3, 4]
    assert [r.batch_ids.to_pylist() for r in records] == [["a", "a", "b"], ["c"]]


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_a_damaged_record_costs_itself_alone(tmp_path, damage):
    spool = Segments(tmp_path, "x")
    for number in range(5):
        spool.append([offered(f"a-{number}", [number])], T0)
    (path,) = spool.everything()
    data = bytearray(path.read_bytes())
    if damage == "torn":
        path.write_bytes(data[:-10])
        assert steps_of(read(path)) == [0, 1, 2, 3]
    else:
        at = data.index(b'"a-2"')
        data[at + 1] ^= 4
        path.write_bytes(data)
        assert steps_of(read(path)) == [0, 1, 3, 4]


def test_a_new_file_begins_with_every_hour_and_with_every_process(tmp_path):
    spool = Segments(tmp_path, "x")
    spool.append([offered("a", [1])], T0)
    assert spool.finished(T0 + 60) == ()
    spool.append([offered("b", [2])], T0 + HOUR_S)
    again = Segments(tmp_path, "y")
    again.append([offered("c", [3])], T0 + HOUR_S + 1)
    assert len(again.everything()) == 3
    assert len(again.finished(T0 + HOUR_S + 1)) == 2
    assert again.finished(T0 + 2 * HOUR_S) == again.everything()
    assert [steps_of(read(path)) for path in again.everything()] == [[1], [2], [3]]


def test_a_spool_that_nobody_empties_drops_its_oldest_files_and_counts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "MAX_SEGMENT_BYTES", 1000)
    spool = Segments(tmp_path, "x", max_bytes=5000)
    for number in range(30):
        spool.append([offered(f"a-{number}", [number])], T0)
    assert sum(path.stat().st_size for path in spool.everything()) <= 6000
    assert spool.num_dropped > 0
    assert steps_of(read(spool.everything()[-1]))[-1] == 29


@pytest.fixture
def world():
    return Clock()


@pytest.fixture
def archive(tmp_path):
    return open_store(f"file://{tmp_path}/elsewhere")


@pytest.fixture
def store(tmp_path, world, archive):
    opened = TelemetryStore(tmp_path / "t.duckdb", archive=archive, world=world)
    yield opened
    opened.close()


def test_an_hour_that_is_over_goes_to_the_archive_and_leaves_the_spool(
    store, tmp_path, world, archive
):
    put(store, 0)
    event = EventRow(ts=T0, run_id="r", generation=1, kind="x")
    store.ingest("e-0", "event", encode("event", [event]))
    store.archive(T0 + 1)
    assert archived(archive, "step") == [], "the hour is not over"
    store.archive(T0 + HOUR_S)
    (key,) = archived(archive, "step")
    rows = read_archive(archive, key)
    assert rows["step"].to_pylist() == list(range(10))
    assert set(rows["batch_id"].to_pylist()) == {"s-0"}
    assert len(archived(archive, "event")) == 1
    assert list((tmp_path / "t.spool").iterdir()) == []


def test_archiving_that_was_cut_off_is_done_again_without_a_second_copy(
    store, tmp_path, world, archive
):
    put(store, 0)
    kept = {path: path.read_bytes() for path in (tmp_path / "t.spool").iterdir()}
    store.archive(T0 + HOUR_S)
    for path, data in kept.items():
        path.write_bytes(data)
    store.archive(T0 + HOUR_S)
    assert len(archived(archive, "step")) == 1


def test_what_two_processes_took_in_within_an_hour_does_not_meet_in_the_archive(
    store, tmp_path, world, archive
):
    put(store, 0)
    store.close()
    for number in (1, 2):
        again = TelemetryStore(tmp_path / "t.duckdb", archive=archive, world=world)
        again.archive(world.at)
        put(again, number)
        again.close()
    keys = archived(archive, "step")
    assert {read_archive(archive, key)["batch_id"][0].as_py() for key in keys} == {"s-0", "s-1"}


def test_an_archive_that_fails_costs_nothing(tmp_path, world, archive):
    class Away:
        url = "away://"

        def put(self, key, data):
            raise Unavailable("no network; try again")

    store = TelemetryStore(tmp_path / "t.duckdb", archive=Away(), world=world)
    put(store, 0)
    with pytest.raises(Unavailable):
        store.archive(T0 + HOUR_S)
    assert put(store, 1) is True
    assert len(list((tmp_path / "t.spool").iterdir())) == 2
    store.close()


def test_a_lost_database_is_made_again_from_spool_and_archive(tmp_path, world, archive):
    path = tmp_path / "t.duckdb"
    store = TelemetryStore(path, archive=archive, world=world)
    for number in range(3):
        put(store, number, range(number * 10, number * 10 + 10))
    world.at = T0 + HOUR_S
    store.archive(world.at)
    put(store, 3, range(30, 40))
    store.close()
    path.write_bytes(b"garbage" * 5000)
    again = TelemetryStore(path, archive=archive, world=world)
    assert count(again) == 10
    assert "10 rows" in again.warnings[-1]
    assert again.take_back_archive() == 30
    assert again.take_back_archive() == 0
    assert (count(again), count(again, "count(DISTINCT step)")) == (40, 40)
    assert put(again, 2) is False
    assert count(again, "sum(num_rows)", "step_10s") == 40
    again.close()


def test_a_damaged_file_of_the_archive_is_named(archive):
    archive.put("step/x.parquet", b"no parquet")
    with pytest.raises(Corrupt, match=r"step/x\.parquet"):
        read_archive(archive, "step/x.parquet")


def test_rows_of_before_a_column_was_added_are_archived_beside_newer_ones(
    store, tmp_path, archive, world
):
    put(store, 0)
    spool = Segments(tmp_path / "t.spool", "old")
    old = offered("old-0", [99])
    spool.append([Offered("old-0", "step", old.rows.drop_columns(["sections"]))], T0)
    spool.close()
    store.archive(T0 + HOUR_S)
    found = pa.concat_tables(read_archive(archive, key) for key in archived(archive, "step"))
    assert sorted(found["step"].to_pylist()) == [*range(10), 99]


def test_a_round_of_upkeep_rolls_up_and_once_an_hour_archives_and_forgets(
    store, world, archive, tmp_path
):
    upkeep = Upkeep(store, world)
    put(store, 0)
    world.at = T0 + 100
    upkeep.round()
    assert count(store, table="step_10s") == 1
    assert archived(archive, "step") == []
    world.at = T0 + 9 * 24 * HOUR_S
    upkeep.round()
    assert len(archived(archive, "step")) == 1
    assert (count(store), count(store, table="step_10s")) == (0, 1)


def test_upkeep_takes_the_archive_back_when_the_database_was_begun_anew(tmp_path, world, archive):
    path = tmp_path / "t.duckdb"
    store = TelemetryStore(path, archive=archive, world=world)
    put(store, 0)
    world.at = T0 + HOUR_S
    store.archive(world.at)
    store.close()
    path.write_bytes(b"garbage" * 5000)
    again = TelemetryStore(path, archive=archive, world=world)
    Upkeep(again, world).round()
    assert count(again) == 10
    again.close()


def test_upkeep_says_what_failed_and_goes_on(tmp_path, world):
    store = TelemetryStore(tmp_path / "t.duckdb", world=world)
    upkeep = Upkeep(store, world)
    store.close()
    upkeep.start()
    upkeep.stop()
    assert upkeep.last_error
