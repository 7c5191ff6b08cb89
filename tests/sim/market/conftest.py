"""A folder with a small benchmark of recorded markets."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.sim.market.small_benchmark import TICKS, ZONES, description, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two markets of 80 ticks of 30 minutes: one with a list of prices, one with a price a tick."""
    rng = np.random.default_rng(8)
    ticks = np.repeat(np.arange(2 * TICKS), len(ZONES))
    zones = np.tile(np.array(ZONES), 2 * TICKS)
    counts = rng.integers(0, 17, size=len(ticks))
    write(tmp_path, "gcp.parquet", tick=ticks, zone=zones, available_instances=counts)
    prices = rng.uniform(2, 4, size=len(ticks))
    prices[5] = np.nan
    write(
        tmp_path, "aws.parquet", tick=ticks, zone=zones, available=rng.random(len(ticks)) < 0.7,
        spot_price=prices,
    )  # fmt: skip
    rows = [f"{zone},{zone[:4]},{3 + at},{12 + at}" for at, zone in enumerate(ZONES)]
    (tmp_path / "prices.csv").write_text(
        "\n".join(["zone,region,spot_usd_h,on_demand_usd_h", *rows]) + "\n"
    )
    (tmp_path / "benchmark.json").write_bytes(msgspec.json.encode(description()))
    return tmp_path
