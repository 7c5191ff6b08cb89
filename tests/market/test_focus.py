"""The export: FOCUS columns, exact sums, and the same rows in CSV and Parquet."""

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.costs import CostEntry
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.market.focus import COLUMNS, focus_rows, to_csv, to_parquet

BEGIN = datetime(2026, 12, 31, 23, 30, tzinfo=UTC).timestamp()
REQUIRED = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost",
    "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory",
    "ServiceName",
}  # fmt: skip


def entry(**changes):
    known = {
        "kind": "compute", "part": "training", "micro_usd": 1_800_001, "begin": BEGIN,
        "end": BEGIN + 1800, "seconds": 1800.0, "generation": 2, "micro_usd_per_h": 3_600_001,
        "placement": Placement("aws-sim", "us-east-1", "p5", nodes=2, market="spot"),
        "basis": "30 min x $3.60/h, simulated", "source": "list price, simulated",
        "simulated": True,
    }  # fmt: skip
    return CostEntry(**(known | changes))


EGRESS = entry(kind="egress", part="1 GB carried", quantity=2**30, seconds=0.0, generation=0,
               migration_id="mig-1", micro_usd=90_000)  # fmt: skip


def rows(*entries):
    return focus_rows(entries, run_id="run-1", name="gpt")


def test_every_row_has_the_columns_that_focus_requires():
    names = {column.name for column in COLUMNS}
    assert names >= REQUIRED
    assert all(name.startswith("x_") or name[0].isupper() for name in names)
    for row in rows(entry(), EGRESS):
        assert set(row) == names
        assert all(row[name] is not None for name in REQUIRED - {"ChargeClass"})


def test_a_charge_says_what_where_when_and_at_what_price():
    (row,) = rows(entry())
    assert row["BilledCost"] == Decimal("1.800001")
    assert (row["PricingQuantity"], row["PricingUnit"]) == (Decimal(1), "Hours")  # of two nodes
    assert row["ListUnitPrice"] == Decimal("1.8000005")
    assert (row["PricingCategory"], row["RegionId"]) == ("Dynamic", "us-east-1")
    assert row["BillingPeriodStart"] == datetime(2026, 12, 1, tzinfo=UTC)
    assert row["BillingPeriodEnd"] == datetime(2027, 1, 1, tzinfo=UTC)
    assert (row["BillingAccountId"], row["x_Simulated"]) == ("simulated", True)


def test_bytes_are_priced_in_the_unit_of_the_price_lists():
    (row,) = rows(EGRESS)
    assert (row["PricingQuantity"], row["PricingUnit"]) == (Decimal(1), "GiB")
    assert (row["ServiceCategory"], row["ResourceId"]) == ("Networking", "run-1/mig-1")


def read_csv(data):
    return list(csv.DictReader(io.StringIO(data.decode())))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 10**13), max_size=20), st.integers(1, 7))
def test_both_forms_sum_exactly_to_the_ledger(amounts, nodes):
    place = Placement("aws-sim", "us-east-1", "p5", nodes=nodes)
    found = rows(*(entry(micro_usd=amount, placement=place) for amount in amounts))
    total = Decimal(sum(amounts)) / 1_000_000
    assert sum((Decimal(row["BilledCost"]) for row in read_csv(to_csv(found))), Decimal(0)) == total
    table = pq.read_table(io.BytesIO(to_parquet(found)))
    assert sum(table.column("BilledCost").to_pylist(), Decimal(0)) == total
    assert table.column_names == [column.name for column in COLUMNS]


def test_times_are_utc_and_nothing_is_written_as_none():
    (row,) = read_csv(to_csv(rows(entry())))
    assert row["ChargePeriodStart"] == "2026-12-31T23:30:00Z"
    assert row["ChargeClass"] == row["x_MigrationId"] == ""
    assert row["x_Simulated"] == "true"
    table = pq.read_table(io.BytesIO(to_parquet(rows(entry()))))
    assert str(table.schema.field("ChargePeriodStart").type) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize("market", ["on-demand", "spot", "reserved"])
def test_every_market_has_a_pricing_category(market):
    (row,) = rows(entry(placement=Placement("a", "r", "m", market=market)))
    assert row["PricingCategory"] in {"Standard", "Dynamic", "Committed"}
