"""Price lists of other tools are read with their dates, and bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.feeds.importers import read_prices
from cloudshift_lab.market.quotes import Quote

NOW = 1_795_000_000.0
GPUHUNT = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,provider_data"
SKYPILOT = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,"
    "AvailabilityZone"
)


def read(folder: Path, name: str, *lines: str, cloud: str = "aws") -> list[Quote]:
    (folder / name).write_text("\n".join(lines) + "\n")
    return read_prices(folder / name, cloud=cloud, now=NOW)


def test_a_gpuhunt_catalogue_keeps_its_dates(tmp_path: Path) -> None:
    dated = '"{""priced_at"": ""2026-07-30""}"'
    found = read(
        tmp_path, "gcp.csv", GPUHUNT, f"a3,us,50.6,208,1872,8,H100,80,True,{dated}",
        "n2,us,1.0,8,32,0,,,False,", cloud="gcp",
    )  # fmt: skip
    assert [(q.micro_usd_per_h, q.market, q.priced_at) for q in found] == [
        (50_600_000, "spot", 1_785_369_600.0)
    ]


def test_a_skypilot_catalogue_gives_both_markets(tmp_path: Path) -> None:
    found = read(
        tmp_path, "vms.csv", SKYPILOT,
        "p5.48xlarge,H100,8,192,2048,55.04,20.1,us-east-1,us-east-1a",
        "p4d.24xlarge,A100,8,96,1152,21.9,,us-east-1,us-east-1a", "m5.large,,,2,8,0.1,,us-east-1,",
    )  # fmt: skip
    assert [(q.instance_type, q.market) for q in found] == [
        ("p5.48xlarge", "on-demand"), ("p5.48xlarge", "spot"), ("p4d.24xlarge", "on-demand"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "tsv"])
def test_a_spot_price_history_of_aws_keeps_the_time_of_each_price(
    tmp_path: Path, kind: str
) -> None:
    entry = {
        "AvailabilityZone": "eu-west-1b", "InstanceType": "p5.48xlarge", "SpotPrice": "21.5",
        "Timestamp": "2026-11-20T10:00:00+00:00", "ProductDescription": "Linux/UNIX",
    }  # fmt: skip
    if kind == "json":
        found = read(tmp_path, "h.json", json.dumps({"SpotPriceHistory": [entry]}))
    else:
        found = read(tmp_path, "h.tsv", "\t".join(entry), "\t".join(entry.values()))
    assert [(q.region, q.zone, q.priced_at) for q in found] == [
        ("eu-west-1", "eu-west-1b", 1_795_168_800.0)
    ]


def test_prices_in_another_currency_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="prices in EUR"):
        read(tmp_path, "x.csv", f"{SKYPILOT},Currency", "p5,H100,8,1,1,55,,us,a,EUR")


@pytest.mark.parametrize("price", ["cheap", "1,5", "0x10"])
def test_a_price_that_is_no_number_is_refused(tmp_path: Path, price: str) -> None:
    with pytest.raises(Corrupt, match="cannot be read as prices"):
        read(tmp_path, "x.csv", SKYPILOT, f'p5,H100,8,1,1,"{price}",,us,a')


def test_an_unknown_list_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpuhunt or SkyPilot"):
        read(tmp_path, "x.csv", "a,b", "1,2")
    with pytest.raises(UsageError, match="name aws"):
        header = "InstanceType\tAvailabilityZone\tSpotPrice\tTimestamp"
        read(tmp_path, "h.tsv", header, "p5.48xlarge\tz\t1\t2026-01-01", cloud="gcp")
    with pytest.raises(NotFound, match="give a price list"):
        read_prices(tmp_path / "none.csv", cloud="aws", now=NOW)
    with pytest.raises(UsageError, match="name the cloud"):
        read(tmp_path, "x.csv", SKYPILOT, cloud="")
