"""Rolled up or not, late or not, a run looks the same; what is old is forgotten, not the run."""

import random

import pytest

from cloudshift_lab.telemetry import store as store_module
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.rollups import DAY_US
from cloudshift_lab.telemetry.schema import StepRow
from cloudshift_lab.telemetry.store import TelemetryStore

DAY_S = DAY_US / 1e6
T0 = 1_800_000_000.0


@pytest.fixture
def store(tmp_path):
    opened = TelemetryStore(tmp_path / "telemetry.duckdb")
    yield opened
    opened.close()


def rows_of(steps, *, generation=1, ranks=2, at=T0, step_s=1.0, run_id="r"):
    return [
        StepRow(
            ts=at + step * step_s,
            run_id=run_id,
            generation=generation,
            rank=rank,
            step=step,
            loss=10.0 - step / 100 + rank,
            tokens=100,
            step_s=step_s + rank / 10,
            sections={"forward": 0.25, "backward": 0.5 + rank},
        )
        for step in steps
        for rank in range(ranks)
    ]


def put(store, rows, number):
    assert store.ingest(f"s-{number}", "step", encode("step", rows))


def rounded(rows):
    return [{k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def one(store, query):
    return store.sql(query).to_pylist()[0]


def table(store, name):
    order = {"step_10s": "bucket, rank", "section_10s": "bucket, rank, section"}
    return store.sql(
        f"SELECT * FROM {name} ORDER BY run_id, generation, {order.get(name, 'bucket')}",
        limit=100_000,
    ).to_pylist()


def merged_ten_s(store):
    """Partial sums added up, as every reader of them does."""
    return store.sql(
        """SELECT bucket, rank, sum(num_rows) AS n, min(first_step) AS a, max(last_step) AS z,
        round(sum(loss_sum), 6) AS l, sum(tokens) AS t, round(sum(step_s_sum), 6) AS s,
        max(step_s_max) AS m FROM step_10s GROUP BY bucket, rank ORDER BY bucket, rank""",
        limit=100_000,
    ).to_pylist()


def test_ten_seconds_of_a_rank_become_one_row_with_sums_and_extremes(store):
    put(store, rows_of(range(10), ranks=1), 0)
    store.roll(T0 + 100)
    row = one(store, "SELECT *, epoch(bucket) AS at FROM step_10s")
    assert (row["at"], row["num_rows"], row["first_step"], row["last_step"]) == (T0, 10, 0, 9)
    assert row["loss_sum"] == pytest.approx(100 - 0.45)
    assert (row["tokens"], row["step_s_sum"], row["step_s_max"]) == (1000, 10.0, 1.0)
    assert row["last_loss"] == pytest.approx(9.91)


def test_seconds_of_sections_are_summed_by_name(store):
    put(store, rows_of(range(10)), 0)
    store.roll(T0 + 100)
    found = [(r["rank"], r["section"], r["seconds"]) for r in table(store, "section_10s")]
    assert found == [
        (0, "backward", 5.0), (0, "forward", 2.5), (1, "backward", 15.0), (1, "forward", 2.5)
    ]  # fmt: skip


def test_a_minute_adds_up_all_ranks_and_names_the_slowest(store):
    put(store, rows_of(range(120), ranks=3), 0)
    store.roll(T0 + 200)
    first = table(store, "step_1m")[0]
    assert (first["num_ranks"], first["num_rows"], first["slowest_rank"]) == (3, 180, 2)
    assert first["tokens_per_s"] == pytest.approx(100 / 1.0 + 100 / 1.1 + 100 / 1.2)


def test_what_has_not_settled_is_not_rolled_up(store):
    put(store, rows_of(range(60)), 0)
    store.roll(T0 + 45)
    assert one(store, "SELECT max(last_step) AS s FROM step_10s")["s"] == 19
    assert table(store, "step_1m") == []


@pytest.mark.parametrize("seed", range(2))
def test_rows_that_come_late_and_in_any_order_give_the_same_rollups(tmp_path, seed):
    draw = random.Random(seed)
    steps = [rows_of(range(n, n + 7)) for n in range(0, 210, 7)]
    punctual = TelemetryStore(tmp_path / "a.duckdb")
    for number, rows in enumerate(steps):
        put(punctual, rows, number)
    punctual.roll(T0 + 400)
    late = TelemetryStore(tmp_path / "b.duckdb")
    for number, rows in draw.sample(list(enumerate(steps)), len(steps)):
        put(late, rows, number)
        if draw.random() < 0.3:
            late.roll(T0 + draw.uniform(0, 400))
        if draw.random() < 0.2:
            late.close()
            late = TelemetryStore(tmp_path / "b.duckdb")
    late.roll(T0 + 400)
    assert merged_ten_s(late) == merged_ten_s(punctual)
    assert rounded(table(late, "step_1m")) == rounded(table(punctual, "step_1m"))
    late.close()
    punctual.close()


def test_a_batch_that_comes_twice_is_rolled_up_once(store):
    rows = rows_of(range(20))
    put(store, rows, 0)
    store.roll(T0 + 100)
    assert store.ingest("s-0", "step", encode("step", rows)) is False
    assert one(store, "SELECT sum(num_rows) AS n FROM step_10s")["n"] == 40


def test_raw_rows_are_forgotten_after_a_week_and_ten_seconds_after_a_month(store):
    put(store, rows_of(range(100)), 0)
    store.roll(T0 + 200)
    before = store.latest("r")
    store.forget(T0 + 6 * DAY_S)
    assert one(store, "SELECT count(*) AS n FROM step")["n"] == 200
    store.forget(T0 + 8 * DAY_S)
    assert one(store, "SELECT count(*) AS n FROM step")["n"] == 0
    assert one(store, "SELECT count(*) AS n FROM step_10s")["n"] == 20
    after = store.latest("r")
    assert (after.step, after.at) == (before.step, before.at)
    assert after.loss == pytest.approx(before.loss)
    store.forget(T0 + 31 * DAY_S)
    assert one(store, "SELECT count(*) AS n FROM step_10s")["n"] == 0
    assert len(table(store, "step_1m")) == 2
    assert store.latest("r").step == 99
    assert store.step_curve("r").step == (59, 99)


def test_what_is_not_rolled_up_is_not_forgotten(store):
    put(store, rows_of(range(100)), 0)
    store.forget(T0 + 100 * DAY_S)
    assert one(store, "SELECT count(*) AS n FROM step")["n"] == 200


def test_batches_are_known_after_their_rows_are_forgotten(tmp_path):
    path = tmp_path / "t.duckdb"
    rows = rows_of(range(10))
    store = TelemetryStore(path)
    for number in range(50):
        store.ingest(f"s-{number}", "step", encode("step", rows))
    store.roll(T0 + 200)
    store.forget(T0 + 50 * DAY_S)
    assert one(store, "SELECT count(*) AS n FROM taken")["n"] == 1
    store.close()
    again = TelemetryStore(path)
    assert again.ingest("s-49", "step", encode("step", rows)) is False
    assert again.ingest("s-50", "step", encode("step", rows)) is True
    again.close()


def test_very_late_rows_are_added_to_minutes_whose_ten_seconds_are_gone(store):
    put(store, rows_of(range(60)), 0)
    store.roll(T0 + 200)
    store.forget(T0 + 40 * DAY_S)
    for number in (1, 2):
        put(store, rows_of(range(60), ranks=1), number)
        store.roll(T0 + 40 * DAY_S + number * 100)
    assert one(store, "SELECT sum(num_rows) AS n FROM step_1m")["n"] == 120 + 60 + 60


def curves(store, monkeypatch):
    """The curve from raw rows, from 10 s and from minutes."""
    raw = store.step_curve("r")
    monkeypatch.setattr(store_module, "RAW_CURVE_ROWS", -1)
    ten_s = store.step_curve("r")
    monkeypatch.setattr(store_module, "TEN_S_CURVE_ROWS", -1)
    return raw, ten_s, store.step_curve("r")


@pytest.mark.parametrize("rolled_until", [0, 95, 130, 400])
def test_a_curve_of_rollups_shows_the_same_run_up_to_its_newest_row(
    store, monkeypatch, rolled_until
):
    put(store, rows_of(range(200)), 0)
    store.roll(T0 + rolled_until)
    raw, ten_s, minutes = curves(store, monkeypatch)
    assert len(raw.step) == 200
    assert ten_s.step == (*range(9, 200, 10),)
    assert minutes.step == (59, 119, 179, 199)
    for curve in (ten_s, minutes):
        assert curve.at[-1] == raw.at[-1]
        assert curve.tokens_per_s == pytest.approx([raw.tokens_per_s[0]] * len(curve.step))
        assert curve.generation == (1,) * len(curve.step)
    assert ten_s.loss[0] == pytest.approx(sum(raw.loss[:10]) / 10)
    assert minutes.loss[0] == pytest.approx(sum(raw.loss[:60]) / 60)


def test_a_curve_of_rollups_leaves_out_what_a_later_generation_repeated(store, monkeypatch):
    put(store, rows_of(range(100)), 0)
    put(store, rows_of(range(60, 120), generation=2, at=T0 + 600), 1)
    store.roll(T0 + 2000)
    _, ten_s, _ = curves(store, monkeypatch)
    assert ten_s.step == (*range(9, 60, 10), *range(69, 120, 10))
    assert ten_s.generation == (1,) * 6 + (2,) * 6
    assert list(ten_s.at) == sorted(ten_s.at)


def test_an_older_file_with_an_entry_per_batch_is_taken_over(tmp_path):
    import duckdb

    path = tmp_path / "t.duckdb"
    old = duckdb.connect(str(path))
    old.execute("CREATE TABLE batch (batch_id VARCHAR PRIMARY KEY, table_name VARCHAR, n BIGINT)")
    old.execute("INSERT INTO batch SELECT 's-' || range, 'step', 1 FROM range(20)")
    old.execute(
        "CREATE TABLE step (ts TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL, generation BIGINT NOT"
        " NULL, rank INTEGER NOT NULL, step BIGINT NOT NULL, loss DOUBLE, tokens BIGINT,"
        " step_s DOUBLE)"
    )
    old.execute("INSERT INTO step VALUES (make_timestamp(1000000), 'r', 1, 0, 5, 2.5, 1, 1)")
    old.close()
    store = TelemetryStore(path)
    assert store.ingest("s-19", "step", encode("step", rows_of(range(2)))) is False
    assert store.ingest("s-20", "step", encode("step", rows_of(range(2), run_id="new"))) is True
    assert (store.latest("r").step, store.latest("new").step) == (5, 1)
    store.close()
