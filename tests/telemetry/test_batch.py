import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.telemetry.batch import batch_id, decode, encode
from cloudshift_lab.telemetry.schema import SCHEMAS, EventRow, StepRow, table_of

step_rows = st.builds(
    StepRow,
    ts=st.floats(0, 4e9),
    run_id=st.text(min_size=1, max_size=20),
    generation=st.integers(0, 1000),
    rank=st.integers(0, 4000),
    step=st.integers(0, 2**40),
    loss=st.none() | st.floats(allow_nan=False),
    tokens=st.none() | st.integers(0, 2**40),
    step_s=st.none() | st.floats(0, 1e6),
)


@settings(deadline=None)
@given(st.lists(step_rows, max_size=20))
def test_step_rows_survive_the_trip_with_times_to_the_microsecond(rows):
    found = decode("step", encode("step", rows)).to_pylist()
    for row, cells in zip(rows, found, strict=True):
        assert (cells["run_id"], cells["rank"], cells["step"]) == (row.run_id, row.rank, row.step)
        assert (cells["loss"], cells["tokens"], cells["step_s"]) == (
            row.loss,
            row.tokens,
            row.step_s,
        )
    stamps = decode("step", encode("step", rows)).column("ts").cast(pa.int64()).to_pylist()
    assert stamps == [round(row.ts * 1e6) for row in rows]


def test_a_loss_that_is_not_a_number_stays_one():
    row = StepRow(ts=1.0, run_id="r", generation=1, rank=0, step=1, loss=math.nan)
    assert math.isnan(decode("step", encode("step", [row])).column("loss")[0].as_py())


def test_events_survive_the_trip():
    row = EventRow(ts=2.5, run_id="r", generation=3, kind="drain", detail='{"step":7}')
    (cells,) = decode("event", encode("event", [row])).to_pylist()
    assert (cells["kind"], cells["severity"], cells["detail"]) == ("drain", "info", '{"step":7}')


def test_every_row_type_has_a_table_whose_columns_are_its_fields():
    step = StepRow(ts=1.0, run_id="r", generation=1, rank=0, step=1)
    event = EventRow(ts=1.0, run_id="r", generation=1, kind="start")
    for row in (step, event):
        assert tuple(SCHEMAS[table_of(row)].names) == row.__struct_fields__


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_arrow_stream_are_corrupt(data):
    with pytest.raises(Corrupt, match="send it again"):
        decode("step", data)


@settings(deadline=None)
@given(st.data())
def test_a_truncated_batch_is_corrupt_or_lacks_only_the_end_mark(data):
    whole = encode("step", [StepRow(ts=1.0, run_id="r", generation=1, rank=0, step=1)])
    part = whole[: data.draw(st.integers(0, len(whole) - 9))]
    try:
        num_rows = decode("step", part).num_rows
    except Corrupt:
        return
    assert num_rows in (0, 1)


def test_another_tables_columns_are_corrupt():
    event = encode("event", [EventRow(ts=1.0, run_id="r", generation=1, kind="start")])
    with pytest.raises(Corrupt, match="other columns"):
        decode("step", event)


def test_an_empty_cell_in_a_required_column_is_corrupt():
    schema = pa.schema([pa.field(field.name, field.type) for field in SCHEMAS["event"]])
    table = pa.table({name: [None] for name in schema.names}, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    with pytest.raises(Corrupt, match="empty cells"):
        decode("event", sink.getvalue().to_pybytes())


@pytest.mark.parametrize("bad", ["soon", None, math.nan])
def test_a_row_whose_time_is_no_time_is_refused(bad):
    row = StepRow(ts=bad, run_id="r", generation=1, rank=0, step=1)
    with pytest.raises(UsageError, match="mend the emitter"):
        encode("step", [row])


def test_an_unknown_table_lists_the_known_ones():
    with pytest.raises(UsageError, match="step, event"):
        decode("gpu", b"")


def test_batch_ids_of_one_process_differ():
    names = {batch_id("run", generation, "n", n) for generation in (1, 2) for n in range(3)}
    assert len(names) == 6
