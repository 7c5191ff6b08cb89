"""A ledger in the columns of FOCUS, the FinOps Open Cost and Usage Specification, version 1.2.

Columns that FOCUS has no name for begin with ``x_``, as it asks for. Amounts are exact decimals of
micro-dollars, times UTC. What nobody sends a bill for says so in ``x_Simulated``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from cloudshift_lab.core.costs import CostEntry, CostKind
from cloudshift_lab.core.money import HOUR_S, MICRO

if TYPE_CHECKING:  # only an export to Parquet needs it
    import pyarrow as pa

Value = str | Decimal | datetime | bool | int | None
_GIB = 2**30
_STEP = Decimal("0.000000001")
_SERVICES: dict[CostKind, tuple[str, str]] = {
    "egress": ("Networking", "Data transfer"),
    "requests": ("Storage", "Object storage requests"),
}
_PRICING = {"on-demand": "Standard", "spot": "Dynamic", "reserved": "Committed"}


class Column(NamedTuple):
    """A column's name and what it holds."""

    name: str
    kind: type


COLUMNS: tuple[Column, ...] = (
    Column("BilledCost", Decimal), Column("BillingAccountId", str),
    Column("BillingAccountName", str), Column("BillingCurrency", str),
    Column("BillingPeriodStart", datetime), Column("BillingPeriodEnd", datetime),
    Column("ChargeCategory", str), Column("ChargeClass", str), Column("ChargeDescription", str),
    Column("ChargeFrequency", str), Column("ChargePeriodStart", datetime),
    Column("ChargePeriodEnd", datetime), Column("ConsumedQuantity", Decimal),
    Column("ConsumedUnit", str), Column("ContractedCost", Decimal),
    Column("EffectiveCost", Decimal), Column("InvoiceIssuerName", str), Column("ListCost", Decimal),
    Column("ListUnitPrice", Decimal), Column("PricingCategory", str),
    Column("PricingCurrency", str), Column("PricingQuantity", Decimal), Column("PricingUnit", str),
    Column("ProviderName", str), Column("PublisherName", str), Column("RegionId", str),
    Column("RegionName", str), Column("ResourceId", str), Column("ResourceName", str),
    Column("ResourceType", str), Column("ServiceCategory", str), Column("ServiceName", str),
    Column("Tags", str), Column("x_RunId", str), Column("x_Attempt", int), Column("x_Kind", str),
    Column("x_Part", str), Column("x_MigrationId", str), Column("x_Basis", str),
    Column("x_PriceSource", str), Column("x_Simulated", bool),
)  # fmt: skip
Row = dict[str, Value]


def focus_rows(entries: Iterable[CostEntry], *, run_id: str, name: str) -> tuple[Row, ...]:
    """One row per entry, in its order; the sum of ``BilledCost`` is that of the entries."""
    return tuple(_row(entry, run_id, name) for entry in entries)


def _row(entry: CostEntry, run_id: str, name: str) -> Row:
    cost = Decimal(entry.micro_usd) / MICRO
    place = entry.placement
    begin, end = _at(entry.begin), _at(entry.end)
    quantity, unit, price = _priced(entry)
    category, service = _SERVICES.get(entry.kind, ("Compute", "Virtual machines"))
    account = "simulated" if entry.simulated else place.cloud
    month, next_month = _month(begin)
    return {
        "BilledCost": cost, "BillingAccountId": account, "BillingAccountName": account,
        "BillingCurrency": "USD", "BillingPeriodStart": month, "BillingPeriodEnd": next_month,
        "ChargeCategory": "Usage", "ChargeClass": None,
        "ChargeDescription": f"{entry.part}: {entry.basis}", "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": begin, "ChargePeriodEnd": end, "ConsumedQuantity": quantity,
        "ConsumedUnit": unit, "ContractedCost": cost, "EffectiveCost": cost,
        "InvoiceIssuerName": place.cloud, "ListCost": cost, "ListUnitPrice": price,
        "PricingCategory": _PRICING[place.market] if entry.seconds else "Standard",
        "PricingCurrency": "USD", "PricingQuantity": quantity, "PricingUnit": unit,
        "ProviderName": place.cloud, "PublisherName": place.cloud, "RegionId": place.region,
        "RegionName": place.region,
        "ResourceId": f"{run_id}/attempt-{entry.generation}" if entry.generation
        else f"{run_id}/{entry.migration_id}",
        "ResourceName": name, "ResourceType": place.instance_type if entry.seconds else service,
        "ServiceCategory": category, "ServiceName": service, "Tags": f'{{"run": "{run_id}"}}',
        "x_RunId": run_id, "x_Attempt": entry.generation or None, "x_Kind": entry.kind,
        "x_Part": entry.part, "x_MigrationId": entry.migration_id or None, "x_Basis": entry.basis,
        "x_PriceSource": entry.source, "x_Simulated": entry.simulated,
    }  # fmt: skip


def _priced(entry: CostEntry) -> tuple[Decimal, str, Decimal | None]:
    """Quantity, unit and price per unit; bytes in several tiers have no single price."""
    if entry.kind == "egress":
        return (Decimal(entry.quantity) / _GIB).quantize(_STEP), "GiB", None
    if entry.kind == "requests":
        return Decimal(entry.quantity), "Requests", None
    nodes = entry.placement.nodes
    hours = Decimal(entry.seconds * nodes / HOUR_S).quantize(_STEP)
    return hours, "Hours", (Decimal(entry.micro_usd_per_h) / nodes / MICRO).quantize(_STEP)


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _month(at: datetime) -> tuple[datetime, datetime]:
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = (
        first.replace(year=at.year + 1, month=1)
        if at.month == 12
        else first.replace(month=at.month + 1)
    )
    return first, after


def to_csv(rows: Sequence[Row]) -> bytes:
    """As FOCUS writes CSV: a header, ISO times with ``Z``, empty cells for null."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([column.name for column in COLUMNS])
    writer.writerows([_cell(row[column.name]) for column in COLUMNS] for row in rows)
    return sink.getvalue().encode()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def to_parquet(rows: Sequence[Row]) -> bytes:
    """The same as a Parquet file, with exact decimals and UTC times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field(column.name, _arrow(column.kind)) for column in COLUMNS]
    columns = [pa.array([row[f.name] for row in rows], type=f.type) for f in fields]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), sink)
    return bytes(sink.getvalue().to_pybytes())


def _arrow(kind: type) -> pa.DataType:
    import pyarrow as pa

    types = {
        Decimal: pa.decimal128(38, 18), datetime: pa.timestamp("us", tz="UTC"), bool: pa.bool_(),
        int: pa.int64(), str: pa.string(),
    }  # fmt: skip
    return types[kind]
