"""A benchmark is read as it is described, and what is wrong with it is named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.sim.market.traces import egress_usd_per_gb, read_benchmark, read_trace
from tests.sim.market.small_benchmark import description, write


def test_a_list_of_prices_holds_for_every_tick(folder: Path) -> None:
    trace = read_trace(folder, "gcp_h100_gang8", read_benchmark(folder))
    assert trace.zones == ("east-a", "east-b", "west-a")
    assert trace.regions == ("east", "east", "west")
    assert np.array_equal(trace.spot_usd_h, np.tile([3.0, 4.0, 5.0], (80, 1)))
    assert np.array_equal(trace.on_demand_usd_h, [12.0, 13.0, 14.0])
    assert trace.is_known.all()


def test_a_place_is_up_when_the_whole_gang_started(folder: Path) -> None:
    trace = read_trace(folder, "gcp_h100_gang8", read_benchmark(folder))
    assert 0.3 < trace.is_up.mean() < 0.8


def test_a_price_that_was_not_recorded_is_never_zero(folder: Path) -> None:
    trace = read_trace(folder, "aws_v100_1x", read_benchmark(folder))
    assert trace.spot_usd_h.min() > 1
    assert np.isinf(trace.spot_usd_h).sum() == 1


def test_egress_is_free_inside_a_region_and_has_its_exceptions() -> None:
    rule = "0.02 USD/GB between regions, 0.01 us-1<->us-2, 0 inside a region"
    usd = egress_usd_per_gb(rule, ("us-1", "us-1", "us-2", "eu"))
    assert usd[0].tolist() == [0.0, 0.0, 0.01, 0.02]
    assert (usd == usd.T).all()


def test_egress_without_a_price_is_refused() -> None:
    with pytest.raises(Corrupt, match="names no egress price"):
        egress_usd_per_gb("free for all", ("a",))


def test_a_folder_without_a_benchmark_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="give the folder of a market benchmark"):
        read_benchmark(tmp_path)


def test_a_scenario_of_an_unknown_market_is_refused(tmp_path: Path) -> None:
    text = description() | {"markets": {}}
    (tmp_path / "benchmark.json").write_bytes(msgspec.json.encode(text))
    with pytest.raises(Corrupt, match="gcp_h100_gang8"):
        read_benchmark(tmp_path)


def test_a_benchmark_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "benchmark.json").write_text('{"markets": {}}')
    with pytest.raises(Corrupt, match="get it again"):
        read_benchmark(tmp_path)


def test_a_trace_without_its_columns_is_refused(folder: Path) -> None:
    benchmark = read_benchmark(folder)
    write(folder, "gcp.parquet", tick=[0], zone=["east-a"])
    with pytest.raises(Corrupt, match="lacks the column available_instances"):
        read_trace(folder, "gcp_h100_gang8", benchmark)
    write(folder, "aws.parquet", tick=[0], zone=["east-a"], available=[True])
    with pytest.raises(Corrupt, match="no spot price"):
        read_trace(folder, "aws_v100_1x", benchmark)
    (folder / "aws.parquet").unlink()
    with pytest.raises(NotFound, match=r"aws\.parquet"):
        read_trace(folder, "aws_v100_1x", benchmark)
