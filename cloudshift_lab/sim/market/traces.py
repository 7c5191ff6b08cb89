"""Reads a benchmark of recorded markets: prices, availability, egress, and the jobs to place."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet

from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.market.places import Flags, Floats

HOUR_S = 3600.0


class MarketEntry(msgspec.Struct, frozen=True):
    """A market as ``benchmark.json`` describes it."""

    trace: str
    available_if: str
    tick_s: float


class JobEntry(msgspec.Struct, frozen=True):
    """What all jobs have in common."""

    cold_start_h: float


class Scenario(msgspec.Struct, frozen=True):
    """One cell of the benchmark: where, how tight, how large."""

    market: str
    deadline_ratio: float
    ckpt_gb: float

    @property
    def provider(self) -> str:
        """Whose starts and windows it uses: what its market's name begins with."""
        return self.market.partition("_")[0]

    @property
    def label(self) -> str:
        return f"{self.market} {self.deadline_ratio:g}x {self.ckpt_gb:g} GB"


class Benchmark(msgspec.Struct, frozen=True):
    """``benchmark.json``, as far as it is used."""

    markets: dict[str, MarketEntry]
    window_ticks: dict[str, int]
    starts: dict[str, list[int]]
    job: JobEntry
    scenarios: list[Scenario]
    egress: dict[str, str]
    on_demand: dict[str, str | float]

    def cases(self) -> Iterator[tuple[Scenario, int, int]]:
        """Every scenario at every start, with the ticks of its window."""
        for scenario in self.scenarios:
            for start in self.starts[scenario.provider]:
                yield scenario, start, self.window_ticks[scenario.provider]


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded market.

    Args:
        regions: [zones], each zone's.
        is_up: [ticks, zones], whether the whole job could be had, at a price that is known.
        spot_usd_h: [ticks, zones], inf where unknown.
        on_demand_usd_h: [zones].
        usd_per_gb: [zones, zones], egress from row to column.
        is_known: [ticks], whether the tick was recorded; the others are held back.
    """

    name: str
    tick_s: float
    zones: tuple[str, ...]
    regions: tuple[str, ...]
    is_up: Flags
    spot_usd_h: Floats
    on_demand_usd_h: Floats
    usd_per_gb: Floats
    is_known: Flags


def read_benchmark(folder: Path) -> Benchmark:
    """``benchmark.json`` of a folder.

    Raises:
        NotFound: There is none.
        Corrupt: It lacks something, or names a market or provider that it does not describe.
    """
    file = folder / "benchmark.json"
    if not file.is_file():
        raise NotFound(f"{folder} has no benchmark.json; give the folder of a market benchmark")
    try:
        benchmark = msgspec.json.decode(file.read_bytes(), type=Benchmark)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"benchmark.json cannot be used ({error}); get it again") from error
    if not benchmark.scenarios:
        raise Corrupt("benchmark.json has no scenarios; get it again")
    for scenario in benchmark.scenarios:
        known = scenario.provider in benchmark.starts and scenario.market in benchmark.markets
        if not known or scenario.provider not in benchmark.window_ticks:
            raise Corrupt(
                f"benchmark.json has a scenario of {scenario.market} but no market, starts or "
                "window for it; get it again"
            )
    return benchmark


def read_trace(folder: Path, name: str, benchmark: Benchmark) -> Trace:
    """One market of the benchmark.

    Raises:
        NotFound: A file is missing.
        Corrupt: A file lacks a column, or a zone has no price.
    """
    entry = benchmark.markets[name]
    columns = _columns(folder / entry.trace)
    zones = tuple(sorted(set(columns["zone"])))
    shape = (int(columns["tick"].max()) + 1, len(zones))
    at = columns["tick"].astype(np.int64), np.searchsorted(zones, columns["zone"])
    seen = np.zeros(shape, dtype=bool)
    seen[at] = True
    is_up = np.zeros(shape, dtype=bool)
    is_up[at] = _is_up(columns, entry)
    provider = name.partition("_")[0]
    book = _zone_prices(folder, benchmark.on_demand[provider])
    regions = tuple(book[zone]["region"] if book else zone[:-1] for zone in zones)
    spot_usd_h = _spot(columns, at, shape, zones, book)
    return Trace(
        name=name, tick_s=entry.tick_s, zones=zones, regions=regions,
        is_up=is_up & np.isfinite(spot_usd_h), spot_usd_h=spot_usd_h,
        on_demand_usd_h=_on_demand(benchmark.on_demand[provider], zones, book),
        usd_per_gb=egress_usd_per_gb(benchmark.egress[provider], regions),
        is_known=np.asarray(seen.all(axis=1)),
    )  # fmt: skip


def egress_usd_per_gb(rule: str, regions: tuple[str, ...]) -> Floats:
    """[zones, zones], from a rule in words: ``0.02 USD/GB between regions, 0.01 a<->b``.

    Raises:
        Corrupt: The rule names no price between regions.
    """
    found = re.search(r"([\d.]+) USD/GB between regions", rule)
    if found is None:
        raise Corrupt(f"'{rule}' names no egress price between regions; mend benchmark.json")
    names = np.array(regions)
    usd = np.where(names[:, None] == names[None, :], 0.0, float(found[1]))
    for price, one, other in re.findall(r"([\d.]+) (\S+?)<->([\w-]+)", rule):
        for source, target in ((one, other), (other, one)):
            usd[np.ix_(names == source, names == target)] = float(price)
    return usd


def _columns(file: Path) -> dict[str, npt.NDArray[Any]]:
    if not file.is_file():
        raise NotFound(f"{file} is not there; get the benchmark's traces again")
    table = parquet.read_table(file)
    for needed in ("tick", "zone"):
        if needed not in table.column_names:
            raise Corrupt(f"{file.name} lacks the column {needed}; get it again")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _is_up(columns: dict[str, npt.NDArray[Any]], entry: MarketEntry) -> Flags:
    name, _, least = entry.available_if.partition(">=")
    values = columns.get(name.strip())
    if values is None:
        raise Corrupt(f"{entry.trace} lacks the column {name.strip()}; get it again")
    return np.asarray(values >= int(least) if least else values.astype(bool))


def _zone_prices(folder: Path, rule: str | float) -> dict[str, dict[str, str]]:
    """By zone, of the file that a rule like ``traces/prices.csv on_demand_usd_h`` names."""
    if not isinstance(rule, str):
        return {}
    file = folder / rule.split()[0]
    if not file.is_file():
        raise NotFound(f"{file} is not there; get the benchmark's prices again")
    with file.open(newline="", encoding="utf-8") as lines:
        return {row["zone"]: row for row in csv.DictReader(lines)}


def _spot(
    columns: dict[str, npt.NDArray[Any]], at: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    shape: tuple[int, int], zones: tuple[str, ...], book: dict[str, dict[str, str]],
) -> Floats:  # fmt: skip
    named = [name for name in columns if "price" in name or "usd" in name]
    prices = np.full(shape, np.inf)
    if named:
        prices[at] = columns[named[0]]
    elif book:
        prices[:] = [float(book[zone]["spot_usd_h"]) for zone in zones]
    else:
        raise Corrupt("a trace has no spot price and no table of them; get it again")
    return np.where(np.isnan(prices), np.inf, prices)


def _on_demand(
    rule: str | float, zones: tuple[str, ...], book: dict[str, dict[str, str]]
) -> Floats:
    if not isinstance(rule, str):
        return np.full(len(zones), float(rule))
    column = rule.split()[-1]
    return np.array([float(book[zone][column]) for zone in zones])
