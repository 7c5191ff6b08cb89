"""Seconds of named parts of a step, from a rank's row to a query; and from files without them."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.telemetry.batch import decode, encode
from cloudshift_lab.telemetry.schema import SCHEMAS, StepRow
from cloudshift_lab.telemetry.store import TelemetryStore

PARTS = {"forward": 0.25, "backward": 0.5}
ROWS = [
    StepRow(ts=1.0, run_id="r", generation=1, rank=0, step=1, step_s=1.0, sections=PARTS),
    StepRow(ts=2.0, run_id="r", generation=1, rank=0, step=2, step_s=1.0, sections={}),
    StepRow(ts=3.0, run_id="r", generation=1, rank=0, step=3, step_s=1.0),
]
ASK = "SELECT step, sections['forward'] AS forward_s FROM step ORDER BY step"


def without_newest_column(rows: list[StepRow]) -> bytes:
    table = pa.ipc.open_stream(encode("step", rows)).read_all().drop_columns(["sections"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def test_seconds_survive_the_trip_by_name() -> None:
    found = decode("step", encode("step", ROWS)).column("sections").to_pylist()
    assert [None if cell is None else dict(cell) for cell in found] == [PARTS, {}, None]


def test_a_query_asks_for_a_part_by_its_name(tmp_path: Path) -> None:
    store = TelemetryStore(tmp_path / "t.duckdb")
    store.ingest("b-0", "step", encode("step", ROWS))
    assert store.sql(ASK).column("forward_s").to_pylist() == [0.25, None, None]
    store.close()


def test_rows_spooled_by_an_older_agent_are_taken_in(tmp_path: Path) -> None:
    store = TelemetryStore(tmp_path / "t.duckdb")
    store.ingest("b-0", "step", without_newest_column(ROWS))
    assert store.sql(ASK).column("forward_s").to_pylist() == [None, None, None]
    store.close()


def test_only_the_newest_columns_may_be_missing() -> None:
    table = pa.ipc.open_stream(encode("step", ROWS)).read_all().drop_columns(["step_s"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(Corrupt, match="other columns"):
        decode("step", sink.getvalue().to_pybytes())


def test_a_file_from_before_there_were_parts_keeps_its_rows_and_takes_new_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.duckdb"
    old = duckdb.connect(str(path))
    old.execute(
        "CREATE TABLE step (ts TIMESTAMP NOT NULL, run_id VARCHAR NOT NULL,"
        " generation BIGINT NOT NULL, rank INTEGER NOT NULL, step BIGINT NOT NULL,"
        " loss DOUBLE, tokens BIGINT, step_s DOUBLE)"
    )
    old.execute("INSERT INTO step VALUES ('2026-01-01', 'r', 1, 0, 0, 1.5, 8, 0.1)")
    old.close()
    store = TelemetryStore(path)
    store.ingest("b-0", "step", encode("step", ROWS))
    assert store.sql(ASK).column("forward_s").to_pylist() == [None, 0.25, None, None]
    names = store.sql("SELECT * FROM step LIMIT 0").schema.names
    assert names == SCHEMAS["step"].names
    store.close()
