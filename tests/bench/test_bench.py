"""Every benchmark runs in seconds at its tiny size, and what no machine decides holds there."""

import math

import msgspec
import pytest

from cloudshift_lab.checkpoint.codecs import (
    ADAMW_V,
    ADAMW_W,
    DERIVED,
    PLANES_ZSTD,
    SHUFFLE_ZSTD,
    STORE,
    XOR_PLANES_ZSTD,
)
from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.sim.bench import corruption, ours
from cloudshift_lab.sim.bench.main import BENCHES, main, measure
from cloudshift_lab.sim.bench.rows import Result

CERTAIN = {
    "checkpoint": {
        "ours: extra host memory",
        "ours: losses that differ after a restore",
    },
    "restore": {"ours: bytes read / stored", "ours: tensors that differ"},
    "codec": {"tensors that differ after a restore, all cases"},
    "corruption": {
        "ours: silent corruptions",
        "ours: errors that say nothing",
        "ours: detected, or without effect",
    },
    "migration": {"tiny: lost steps", "tiny: losses that differ from the control's"},
    "telemetry": {
        "load: rows lost",
        "acknowledged rows lost",
        "rows stored twice",
        "rows lost, acknowledged or not",
    },
    "steady": set(),
    "advice": {"simulated markets, deadlines missed with lost work and exposed transfers"},
}


@pytest.fixture(scope="module", params=BENCHES)
def result(request):
    lines = []
    found = measure(request.param, "tiny", lines.append)
    assert lines, "it says how far it is"
    return found


def test_what_the_machine_does_not_decide_holds_at_any_size(result):
    verdicts = {row.name: row.passed for row in result.rows if row.passed is not None}
    assert set(verdicts) == CERTAIN[result.bench]
    assert all(verdicts.values()), result.rows


def test_no_verdict_rests_on_the_clock_of_a_tiny_run(result):
    assert [row.name for row in result.rows if row.full_only and row.passed is not None] == []


def test_every_row_has_a_figure_and_every_time_its_samples(result):
    assert [row.name for row in result.rows if math.isnan(row.value)] == []
    assert [r.name for r in result.rows if r.unit in ("s", "ms") and not r.samples] == []
    assert len({row.name for row in result.rows}) == len(result.rows)


def test_a_result_names_machine_versions_and_commit(result):
    assert result.machine.num_cpus > 0 and result.machine.cpu
    assert {"torch", "numpy", "zstandard", "blake3"} <= set(result.versions)
    assert result.commit and result.command.startswith("python -m cloudshift_lab bench")
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result


def test_the_rival_notices_less(tmp_path, capsys):
    path = tmp_path / "new" / "corruption.json"
    assert main(["corruption", "--size", "tiny", "--json", str(path)]) == 0
    rows = {row.name: row for row in msgspec.json.decode(path.read_bytes(), type=Result).rows}
    assert rows["DCP: silent corruptions"].value > 0
    assert rows["DCP: silent corruptions"].goal is None
    assert "ours: silent corruptions" in capsys.readouterr().out


def test_what_is_damaged_has_chunks_of_every_kind_and_some_of_the_step_before():
    older, newer = corruption._states(corruption._SHAPES["tiny"])
    checkpoint = open_run(corruption._Ours(older, newer)._store, ours.RUN)
    codecs = {location.codec for location in checkpoint.locations()}
    assert codecs >= {
        STORE, PLANES_ZSTD, SHUFFLE_ZSTD, XOR_PLANES_ZSTD, DERIVED, ADAMW_V, ADAMW_W
    }  # fmt: skip
    assert len(checkpoint.packs()) == 2
