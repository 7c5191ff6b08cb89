"""A small benchmark of recorded markets, in the layout of the real ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet

TICKS = 40
ZONES = ("east-a", "east-b", "west-a")


def write(folder: Path, name: str, **columns: object) -> None:
    parquet.write_table(arrow.table(columns), folder / name)


def description() -> dict[str, object]:
    """What ``benchmark.json`` says."""
    return {
        "markets": {
            "gcp_h100_gang8": {
                "trace": "gcp.parquet", "available_if": "available_instances >= 8", "tick_s": 1800,
            },
            "aws_v100_1x": {"trace": "aws.parquet", "available_if": "available", "tick_s": 1800},
        },
        "window_ticks": {"gcp": TICKS, "aws": TICKS},
        "starts": {"gcp": [0, 20, 40], "aws": [0, 40]},
        "job": {"cold_start_h": 0.2},
        "scenarios": [
            {"market": "gcp_h100_gang8", "deadline_ratio": 1.3, "ckpt_gb": 50},
            {"market": "aws_v100_1x", "deadline_ratio": 1.5, "ckpt_gb": 100},
        ],
        "egress": {
            "gcp": "0.02 USD/GB between regions, 0 inside a region",
            "aws": "0.02 USD/GB between regions, 0.01 east-<->west-, 0 inside a region",
        },
        "on_demand": {"gcp": "prices.csv on_demand_usd_h", "aws": 12.0},
    }  # fmt: skip
