"""What a crash, a torn write or a flipped bit does to the file, and what is left after it."""

import os
import shutil
import subprocess
import sys

import pytest

from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import StepRow
from cloudshift_lab.telemetry.store import TelemetryStore

CRASH = """
import os, sys
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import StepRow
from cloudshift_lab.telemetry.store import TelemetryStore
store = TelemetryStore(sys.argv[1])
for n in range(20):
    rows = [StepRow(ts=1.0, run_id="r", generation=1, rank=0, step=n * 100 + k) for k in range(100)]
    store.ingest(f"batch{n:02}-0", "step", encode("step", rows))
    if n == 4 and len(sys.argv) > 2:
        store.forget(1.0)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=["before any checkpoint", "after a checkpoint"])
def spooled(request, tmp_path):
    """A database whose process was killed: 20 batches acknowledged, most of them in the log."""
    path = tmp_path / "t.duckdb"
    extra = ["checkpoint"] if request.param == "after a checkpoint" else []
    subprocess.run([sys.executable, "-c", CRASH, str(path), *extra], check=False)
    assert path.with_name("t.duckdb.wal").stat().st_size > 1000
    return path


@pytest.fixture
def crashed(spooled):
    """The same without the spool beside it."""
    shutil.rmtree(spooled.with_suffix(".spool"))
    return spooled


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def reopen(path):
    """Number of rows and batches after opening, and the warnings; the store must be usable."""
    store = TelemetryStore(path)
    counted = store.sql(
        "SELECT (SELECT count(*) FROM step) AS s,"
        " (SELECT CAST(sum(last - first + 1) AS INT) FROM taken) AS b"
    )
    num_rows, num_batches = counted.to_pylist()[0].values()
    row = StepRow(ts=2.0, run_id="r", generation=1, rank=0, step=1)
    assert store.ingest("new", "step", encode("step", [row])) is True
    warnings = store.warnings
    store.close()
    again = TelemetryStore(path)
    assert again.warnings == ()
    assert again.ingest("new", "step", encode("step", [row])) is False
    again.close()
    return num_rows, num_batches, warnings


def test_after_kill_minus_nine_every_acknowledged_batch_is_there(crashed):
    assert reopen(crashed) == (2000, 20, ())


def test_a_torn_tail_costs_only_the_batch_it_held(crashed):
    log = crashed.with_name("t.duckdb.wal")
    os.truncate(log, log.stat().st_size - 30)
    assert reopen(crashed) == (1900, 19, ())


@pytest.mark.parametrize("batch", [7, 12, 17])
def test_a_flipped_bit_in_the_log_costs_what_came_after_it_and_is_reported(crashed, batch):
    log = crashed.with_name("t.duckdb.wal")
    flip(log, log.read_bytes().index(f"batch{batch:02}".encode()))
    num_rows, num_batches, warnings = reopen(crashed)
    assert (num_rows, num_batches) == (100 * batch, batch)
    assert len(warnings) == 2
    assert "t.duckdb.wal.damaged-1" in warnings[0]
    assert "delete the set-aside file" in warnings[0]
    assert crashed.with_name("t.duckdb.wal.damaged-1").exists()


@pytest.mark.parametrize("garbage", [None, b"garbage" * 100])
def test_a_log_that_duckdb_ignores_without_a_word_is_noticed(crashed, garbage):
    log = crashed.with_name("t.duckdb.wal")
    if garbage is None:
        flip(log, 0)
    else:
        log.write_bytes(garbage)
    num_rows, num_batches, warnings = reopen(crashed)
    assert num_rows == 100 * (num_batches or 0)
    assert len(warnings) == 2
    assert crashed.with_name("t.duckdb.wal.damaged-1").exists()


@pytest.mark.parametrize("damage", ["garbage", "header", "empty end"])
def test_a_damaged_file_is_set_aside_whole_and_a_new_one_begun(crashed, damage):
    if damage == "garbage":
        crashed.write_bytes(b"garbage" * 5000)
    elif damage == "header":
        flip(crashed, 0)
    else:
        os.truncate(crashed, crashed.stat().st_size // 2)
    before = crashed.read_bytes()
    num_rows, num_batches, warnings = reopen(crashed)
    assert (num_rows, num_batches) == (0, None)
    assert "t.duckdb.damaged-1" in warnings[-2]
    assert crashed.with_name("t.duckdb.damaged-1").read_bytes() == before


def test_a_second_damage_does_not_overwrite_what_the_first_set_aside(tmp_path):
    path = tmp_path / "t.duckdb"
    for number in (1, 2):
        path.write_bytes(b"garbage %d" % number * 1000)
        reopen(path)
        path.unlink()
        shutil.rmtree(path.with_suffix(".spool"))
    assert path.with_name("t.duckdb.damaged-1").read_bytes().startswith(b"garbage 1")
    assert path.with_name("t.duckdb.damaged-2").read_bytes().startswith(b"garbage 2")


@pytest.mark.parametrize("damage", ["torn tail", "flipped log", "no log", "garbage", "header"])
def test_with_the_spool_beside_it_no_damage_of_the_database_costs_a_row(spooled, damage):
    log = spooled.with_name("t.duckdb.wal")
    if damage == "torn tail":
        os.truncate(log, log.stat().st_size // 2)
    elif damage == "flipped log":
        flip(log, log.read_bytes().index(b"batch12"))
    elif damage == "no log":
        log.write_bytes(b"garbage" * 100)
    elif damage == "garbage":
        spooled.write_bytes(b"garbage" * 5000)
    else:
        flip(spooled, 0)
    num_rows, num_batches, warnings = reopen(spooled)
    assert (num_rows, num_batches) == (2000, 20)
    assert bool(warnings) == (damage != "torn tail")
    if warnings:
        assert "rows of telemetry were taken back" in warnings[-1]
