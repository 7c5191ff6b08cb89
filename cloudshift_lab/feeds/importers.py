"""Prices out of files that other tools write: gpuhunt and SkyPilot catalogues, AWS histories."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.core.placement import Market
from cloudshift_lab.feeds.aws import spot_quote
from cloudshift_lab.feeds.machines import MACHINES
from cloudshift_lab.market.quotes import Quote

_GPUHUNT = {"instance_name", "location", "price", "gpu_name", "spot"}
_SKYPILOT = {"InstanceType", "AcceleratorName", "Price", "Region"}
_HISTORY = {"InstanceType", "AvailabilityZone", "SpotPrice", "Timestamp"}


def read_prices(file: Path, *, cloud: str, now: float) -> list[Quote]:
    """Prices of a catalogue or history, whichever of the known forms it has.

    Args:
        cloud: Whose prices they are; these files do not say.
        now: Read at, unix seconds. A catalogue without dates counts as of the file's own.

    Raises:
        NotFound: There is no such file.
        UsageError: It has none of the known forms.
        Corrupt: A number or a date in it cannot be read, or its prices are not in dollars.
    """
    if not file.is_file():
        raise NotFound(f"{file} is not there; give a price list")
    if not cloud:
        raise UsageError(f"{file.name} does not say whose prices it has; name the cloud")
    try:
        return list(_rows(file, cloud, now))
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        if isinstance(error, UsageError):
            raise
        raise Corrupt(f"{file.name} cannot be read as prices ({error}); get it again") from error


def _rows(file: Path, cloud: str, now: float) -> Iterator[Quote]:
    if file.suffix == ".json":
        for entry in json.loads(file.read_bytes())["SpotPriceHistory"]:
            yield from _history(entry, now)
        return
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
        form = _form(set(reader.fieldnames or ()), file)
        listed_at = file.stat().st_mtime
        for row in reader:
            _check_currency(row, file)
            yield from form(row, cloud, listed_at, now)


_Form = Callable[[dict[str, str], str, float, float], Iterator[Quote]]


def _form(columns: set[str], file: Path) -> _Form:
    if columns >= _GPUHUNT:
        return _gpuhunt
    if columns >= _SKYPILOT:
        return _skypilot
    if columns >= _HISTORY:
        return _dated
    raise UsageError(
        f"{file.name} is no price list that is known here; give a gpuhunt or SkyPilot catalogue "
        "or an AWS spot price history"
    )


def _gpuhunt(row: dict[str, str], cloud: str, listed_at: float, now: float) -> Iterator[Quote]:
    dated = json.loads(row.get("provider_data") or "{}").get("priced_at")
    if not row["gpu_name"]:
        return
    yield Quote(
        cloud=cloud, region=row["location"], instance_type=row["instance_name"],
        accelerator=row["gpu_name"], num_accelerators=int(row.get("gpu_count") or 1),
        accelerator_memory_gb=float(row.get("gpu_memory") or 0),
        vcpus=int(float(row.get("cpu") or 0)), memory_gb=float(row.get("memory") or 0),
        market="spot" if row["spot"].lower() == "true" else "on-demand",
        micro_usd_per_h=_micro(row["price"]), priced_at=_when(dated) if dated else listed_at,
        seen_at=now, source="gpuhunt catalogue", confidence="listed",
    )  # fmt: skip


def _skypilot(row: dict[str, str], cloud: str, listed_at: float, now: float) -> Iterator[Quote]:
    markets: tuple[tuple[str, Market], ...] = (("Price", "on-demand"), ("SpotPrice", "spot"))
    for column, market in markets:
        if not row["AcceleratorName"] or not row.get(column):
            continue
        yield Quote(
            cloud=cloud, region=row["Region"], zone=row.get("AvailabilityZone") or "",
            instance_type=row["InstanceType"], accelerator=row["AcceleratorName"],
            num_accelerators=int(float(row.get("AcceleratorCount") or 1)),
            vcpus=int(float(row.get("vCPUs") or 0)), memory_gb=float(row.get("MemoryGiB") or 0),
            market=market, micro_usd_per_h=_micro(row[column]), priced_at=listed_at, seen_at=now,
            source="SkyPilot catalogue", confidence="listed",
        )  # fmt: skip


def _dated(row: dict[str, str], cloud: str, listed_at: float, now: float) -> Iterator[Quote]:
    if cloud != "aws":
        raise UsageError(f"a spot price history is AWS's, not {cloud}'s; name aws")
    yield from _history(row, now or listed_at)


def _history(row: dict[str, str], now: float) -> Iterator[Quote]:
    """As the AWS command line writes it; the price was true at its own time, not now."""
    zone = row["AvailabilityZone"]
    entry = row | {"Timestamp": datetime.fromtimestamp(_when(row["Timestamp"]), UTC)}
    quote = spot_quote(entry, zone.rstrip("abcdefghij"), now)
    if quote is not None and ("aws", row["InstanceType"]) in MACHINES:
        yield quote


def _micro(text: str) -> int:
    return round(float(text) * 1e6)


def _when(text: str) -> float:
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _check_currency(row: dict[str, str], file: Path) -> None:
    currency = (row.get("Currency") or row.get("currency") or "USD").upper()
    if currency != "USD":
        raise Corrupt(f"{file.name} has prices in {currency}; give a list in USD")
