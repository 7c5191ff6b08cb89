import datetime
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pytest

from cloudshift_lab.core.errors import Conflict, Corrupt, Exhausted, UsageError
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import EventRow, StepRow
from cloudshift_lab.telemetry.store import TelemetryStore


@pytest.fixture
def store(tmp_path):
    opened = TelemetryStore(tmp_path / "telemetry.duckdb")
    yield opened
    opened.close()


def rows_of(steps, *, run_id="r", generation=1, ranks=2, at=1000.0, step_s=0.5, loss=None):
    return [
        StepRow(
            ts=at + step * step_s,
            run_id=run_id,
            generation=generation,
            rank=rank,
            step=step,
            loss=loss(step, rank) if loss else 10.0 - step,
            tokens=100,
            step_s=step_s,
        )
        for step in steps
        for rank in range(ranks)
    ]


def put(store, rows, batch_id="b-0"):
    return store.ingest(batch_id, "step", encode("step", rows))


def count(store, table="step"):
    return store.sql(f"SELECT count(*) AS n FROM {table}").column("n")[0].as_py()


def test_a_batch_is_stored_once_however_often_it_comes(store):
    data = encode("step", rows_of(range(5)))
    assert store.ingest("b-0", "step", data) is True
    assert store.ingest("b-0", "step", data) is False
    assert store.ingest("b-1", "step", data) is True
    assert count(store) == 20


def test_batches_are_there_after_closing_and_opening(tmp_path):
    path = tmp_path / "sub" / "telemetry.duckdb"
    store = TelemetryStore(path)
    put(store, rows_of(range(5)))
    store.close()
    again = TelemetryStore(path)
    assert again.warnings == ()
    assert count(again) == 10
    assert put(again, rows_of(range(5))) is False
    again.close()


def test_a_damaged_batch_leaves_nothing_and_its_id_stays_free(store):
    with pytest.raises(Corrupt):
        store.ingest("b-0", "step", b"not arrow")
    assert put(store, rows_of(range(1))) is True


def test_a_failing_insert_takes_the_batch_id_back(store, monkeypatch):
    monkeypatch.setattr(
        "cloudshift_lab.telemetry.store.decode", lambda table, data: pa.table({"ts": [1]})
    )
    with pytest.raises(Exception, match=r"telemetry|Binder"):
        store.ingest("b-0", "step", b"")
    monkeypatch.undo()
    assert put(store, rows_of(range(1))) is True


def test_an_empty_id_and_an_unknown_table_are_refused(store):
    with pytest.raises(UsageError, match="needs an id"):
        store.ingest("", "step", b"")
    with pytest.raises(UsageError, match="choose one of"):
        store.ingest("b-0", "gpu", b"")


def test_events_are_kept_with_their_detail(store):
    event = EventRow(ts=5.0, run_id="r", generation=1, kind="drain", detail='{"step": 7}')
    store.ingest("e-0", "event", encode("event", [event]))
    table = store.sql("SELECT ts, kind, CAST(detail->'step' AS INT) AS step FROM event")
    assert table.to_pylist() == [
        {"ts": datetime.datetime(1970, 1, 1, 0, 0, 5), "kind": "drain", "step": 7}
    ]


def test_the_latest_step_is_the_mean_over_its_ranks_with_the_throughput_of_all(store):
    put(store, rows_of(range(10), loss=lambda step, rank: step + rank))
    latest = store.latest("r")
    assert (latest.step, latest.loss, latest.at) == (9, 9.5, 1004.5)
    assert latest.tokens_per_s == pytest.approx(400.0)


def test_the_latest_step_is_the_newest_generations_even_when_its_step_is_lower(store):
    put(store, rows_of(range(10), generation=1))
    put(store, rows_of(range(3, 5), generation=2, at=900.0), "b-1")
    assert store.latest("r").step == 4


def test_a_run_that_sent_nothing_has_no_latest_no_throughput_and_empty_curves(store):
    put(store, rows_of(range(3), run_id="other"))
    assert store.latest("r") is None
    assert store.throughput_tokens_per_s("r") is None
    assert store.losses("r") == ()
    assert store.step_curve("r").step == ()


def test_throughput_looks_back_only_over_its_window_and_the_newest_generation(store):
    put(store, rows_of(range(10), generation=1, step_s=0.1))
    put(store, rows_of(range(10, 20), generation=2, step_s=1.0, at=2000.0), "b-1")
    put(store, rows_of(range(20, 40), generation=2, step_s=2.0, at=2000.0), "b-2")
    assert store.throughput_tokens_per_s("r", window_s=10.0) == pytest.approx(100.0)
    assert store.throughput_tokens_per_s("r", window_s=1e6) == pytest.approx(2 * 3000 / 50)


def test_rows_without_tokens_or_time_give_no_throughput(store):
    put(store, [StepRow(ts=1.0, run_id="r", generation=1, rank=0, step=1, loss=1.0)])
    assert store.throughput_tokens_per_s("r") is None
    assert store.latest("r").tokens_per_s is None


def test_a_loss_that_is_not_finite_is_left_out_of_means_and_curves(store):
    losses = {(0, 0): math.nan, (0, 1): 4.0, (1, 0): math.inf, (1, 1): math.nan, (2, 0): 2.0}
    put(store, rows_of(range(3), loss=lambda step, rank: losses.get((step, rank))))
    assert store.losses("r") == ((0, 4.0), (2, 2.0))
    assert store.step_curve("r").loss == (4.0, None, 2.0)


def test_a_short_curve_shows_every_step(store):
    put(store, rows_of(range(7)))
    curve = store.step_curve("r", 100)
    assert curve.step == tuple(range(7))
    assert curve.loss == tuple(10.0 - step for step in range(7))
    assert curve.tokens_per_s == (400.0,) * 7
    assert curve.at == tuple(1000 + step / 2 for step in range(7))
    assert curve.generation == (1,) * 7


@pytest.mark.parametrize("num_points", [1, 2, 3, 7, 99, 100, 1000])
def test_a_long_curve_keeps_to_its_points_and_ends_at_the_last_step(store, num_points):
    put(store, rows_of(range(100), loss=lambda step, rank: 1.0))
    curve = store.step_curve("r", num_points)
    assert len(curve.step) == min(num_points, 100)
    assert curve.step[-1] == 99
    assert list(curve.step) == sorted(set(curve.step))
    assert set(curve.loss) == {1.0}


def test_a_repeated_step_shows_the_later_generation_and_not_the_abandoned_tail(store):
    put(store, rows_of(range(10), generation=1, loss=lambda step, rank: 1.0))
    put(store, rows_of(range(6, 8), generation=2, at=2000.0, loss=lambda s, r: 2.0), "b-1")
    curve = store.step_curve("r")
    assert curve.step == tuple(range(8))
    assert curve.loss == (1.0,) * 6 + (2.0,) * 2
    assert curve.generation == (1,) * 6 + (2,) * 2
    assert list(curve.at) == sorted(curve.at)


def test_a_step_repeated_in_one_generation_shows_its_newest_row(store):
    put(store, rows_of([3], loss=lambda step, rank: 1.0))
    put(store, rows_of([3], at=2000.0, loss=lambda step, rank: 5.0), "b-1")
    assert store.losses("r") == ((3, 5.0),)


def test_a_curve_of_no_points_is_refused(store):
    with pytest.raises(UsageError, match="at least 1 point"):
        store.losses("r", 0)


WRITES = [
    "DELETE FROM step",
    "COMMIT; DELETE FROM step",
    "SELECT 1; DELETE FROM step",
    "WITH gone AS (DELETE FROM step RETURNING step) SELECT * FROM gone",
    "EXPLAIN ANALYZE DELETE FROM step",
    "DROP TABLE step",
    "SET memory_limit = '8GB'",
    "SET enable_external_access = true",
    "ATTACH ':memory:' AS other",
    "COPY step TO '/tmp/step.csv'",
    "PRAGMA database_size",
    "CALL pragma_version()",
    "CHECKPOINT",
    "INSTALL httpfs",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("query", WRITES)
def test_free_sql_changes_nothing(store, query):
    put(store, rows_of(range(5)))
    with pytest.raises(UsageError):
        store.sql(query)
    assert count(store) == 10
    assert put(store, rows_of(range(1)), "b-1") is True


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM query",
    ],
)
def test_free_sql_sees_no_files_and_no_python_variables(store, query):
    with pytest.raises(UsageError, match="mend the query"):
        store.sql(query)


@pytest.mark.parametrize(
    "query",
    ["SELECT 1 AS x", "FROM step", "DESCRIBE step", "SHOW TABLES", "SUMMARIZE step",
     "EXPLAIN SELECT 1", "WITH a AS (SELECT 1 AS x) SELECT * FROM a -- comment"],
)  # fmt: skip
def test_free_sql_takes_every_kind_of_reading(store, query):
    put(store, rows_of(range(1)))
    assert store.sql(query).num_columns >= 1


def test_a_query_that_does_not_fit_says_so_in_one_line(store):
    with pytest.raises(UsageError) as caught:
        store.sql("SELECT los FROM step")
    assert "\n" not in caught.value.message
    assert "los" in caught.value.message


def test_a_long_answer_is_cut_at_the_limit_and_marked(store):
    put(store, rows_of(range(50)))
    cut = store.sql("SELECT step FROM step ORDER BY step, rank", limit=7)
    assert cut.column("step").to_pylist() == [0, 0, 1, 1, 2, 2, 3]
    assert cut.schema.metadata == {b"truncated": b"true"}
    whole = store.sql("SELECT step FROM step", limit=100)
    assert (whole.num_rows, whole.schema.metadata) == (100, {b"truncated": b"false"})


def test_an_endless_query_is_interrupted_and_the_store_goes_on(store):
    endless = "SELECT sum(a.range * b.range) FROM range(100000000) a, range(100000000) b"
    with pytest.raises(Exhausted, match="too long"):
        store.sql(endless, timeout_s=0.1)
    assert put(store, rows_of(range(1))) is True
    assert count(store) == 2


def test_a_query_beyond_the_memory_limit_is_refused_and_the_store_goes_on(tmp_path):
    store = TelemetryStore(tmp_path / "t.duckdb", memory_limit="40MB")
    with pytest.raises(Exhausted, match="memory"):
        store.sql("SELECT string_agg(range::VARCHAR) FROM range(20000000)", timeout_s=60)
    assert put(store, rows_of(range(1))) is True
    store.close()


def test_readers_and_writers_of_many_threads_do_not_disturb_each_other(store):
    def work(number):
        for n in range(10):
            data = encode("step", rows_of(range(n * 5, n * 5 + 5)))
            store.ingest(f"t{number % 2}-{n}", "step", data)
            store.step_curve("r", 10)
            store.sql("SELECT count(*) FROM step")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result()
    assert count(store) == 2 * 10 * 10


def test_a_second_process_is_told_who_owns_the_file(tmp_path):
    path = tmp_path / "t.duckdb"
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True);"
         " sys.stdin.read()", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        with pytest.raises(Conflict, match="another process"):
            TelemetryStore(path)
    finally:
        holder.communicate()


def test_the_limits_hold_on_every_cursor(store):
    settings = store.sql(
        "SELECT name, value FROM duckdb_settings() WHERE name IN ('threads', 'memory_limit',"
        " 'autoload_known_extensions', 'autoinstall_known_extensions', 'lock_configuration')"
    )
    values = dict(zip(*settings.to_pydict().values(), strict=True))
    assert values.pop("memory_limit") == "488.2 MiB"
    assert values == {
        "threads": "2",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "lock_configuration": "true",
    }
    assert duckdb.__version__ >= "2"
