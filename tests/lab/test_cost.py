"""What a run has cost, as text, as HTML and as files."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from pathlib import Path

import pytest

from cloudshift_lab.core.costs import (
    Account,
    Alarm,
    BillCheck,
    Budget,
    CostEntry,
    Finish,
    Ledger,
    Otherwise,
)
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Spread
from cloudshift_lab.core.views import CostLine, CostView
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.lab.charges import write_charges
from cloudshift_lab.lab.dashboard.charts import LIGHT
from cloudshift_lab.lab.dashboard.costs import costs_html, ways_figure
from cloudshift_lab.lab.render.cost import cost_sheet
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text

NOW = 1_764_000_000.0
AWS = Placement("aws-sim", "us-east-1", "sim.gpu.2x")


def entry(kind, part, micro_usd, seconds=60.0):
    return CostEntry(
        kind=kind, part=part, micro_usd=micro_usd, seconds=seconds, begin=NOW, end=NOW + 60,
        placement=AWS, generation=1, micro_usd_per_h=3_600_000, source="list price",
        basis="1 min x $3.60/h", simulated=True,
    )  # fmt: skip


ENTRIES = (entry("compute", "training", 60_000), entry("overhead", "starting", 40_000))
ACCOUNT = Account(
    run_id="run-1", name="gpt",
    ledger=Ledger(
        entries=ENTRIES, by_kind={"compute": 60_000, "overhead": 40_000, "idle": 0},
        total_micro_usd=100_000, steps=120, tokens=2_000_000,
        micro_usd_per_million_tokens=50_000,
    ),
    finish=Finish(
        1000, Spread(900_000, 1_000_000, 1_100_000), Spread(NOW + 100, NOW + 200, NOW + 300),
        "880 steps x 1 s",
    ),
    otherwise=(
        Otherwise(name="never moved", micro_usd=130_000, regret_micro_usd=-30_000, end=NOW,
                  moves=0, basis="aws-sim:us-east-1 sim.gpu.2x for 2 min"),
        Otherwise(name="perfect foresight", micro_usd=90_000, regret_micro_usd=10_000, end=NOW,
                  moves=0, basis="gcp-sim:us-central1 sim.gpu.2x for 2 min"),
    ),
    checks=(
        BillCheck(migration_id="mig-1", kind="egress", label="egress from aws-sim",
                  forecast_micro_usd=200_000, settled_micro_usd=101_000,
                  ledger_micro_usd=100_000),
    ),
    notes=("a note",),
)  # fmt: skip
BUDGET = Budget(
    micro_usd=125_000, spent_micro_usd=100_000, share=0.8, lasts_s=25.0,
    alarms=(Alarm(50, NOW, 62_500, 125_000), Alarm(80, NOW, 100_000, 125_000)),
    words="$0.10 of the budget of $0.13 is spent (80%)",
)  # fmt: skip
VIEW = CostView(
    "run-1", (CostLine("attempt 1", "aws-sim:us-east-1", 100_000, "100 s", simulated=True),),
    100_000, 3_600_000, simulated=True, as_of=NOW, budget=BUDGET, account=ACCOUNT,
)  # fmt: skip


@pytest.mark.parametrize("shown", [sheet_text, sheet_html, lambda _: costs_html(VIEW, "gpt")])
def test_every_surface_tells_the_same(shown) -> None:
    told = shown(cost_sheet(VIEW, "gpt", "%cloudshift"))
    for words in (
        "cost of gpt: $0.10 [simulated]", "$0.0500 per million tokens", "60.0%", "-$0.0300",
        "never moved", "perfect foresight", "+1.00%", "at step 1,000: $1.00 in all",
        "$0.90 to $1.10", "$0.10 of the budget of $0.13 is spent (80%)",
        "80 % of the budget was spent", "a note", "starting 1 min",
    ):  # fmt: skip
        assert words in unescape(re.sub(r"<[^>]*>", "", told)), words


def test_only_the_highest_level_of_the_present_budget_is_told() -> None:
    assert sheet_text(cost_sheet(VIEW, "gpt", "")).count("% of the budget was spent") == 1


def test_an_account_survives_the_trip_to_the_client() -> None:
    assert from_json(to_json(VIEW), CostView) == VIEW


def test_the_dashboard_draws_what_it_went_into_beside_the_other_ways() -> None:
    figure = ways_figure(VIEW, LIGHT)
    assert figure is not None
    drawn = {(bar["name"], name): x for bar in figure["data"]
             for name, x in zip(bar["y"], bar["x"], strict=True)}  # fmt: skip
    assert drawn == {
        ("compute", "as it happened"): 0.06, ("overhead", "as it happened"): 0.04,
        ("in other ways", "never moved"): 0.13, ("in other ways", "perfect foresight"): 0.09,
    }  # fmt: skip


def test_charges_are_written_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    told = write_charges(path, ENTRIES, run_id="run-1", name="gpt")
    assert told.startswith("the ledger of gpt (2 charges) was written to")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["BilledCost"] for row in rows] == ["0.06", "0.04"]
    with pytest.raises(UsageError, match="exists already; give --export another path"):
        write_charges(path, ENTRIES, run_id="run-1", name="gpt")
    write_charges(tmp_path / "costs.parquet", ENTRIES, run_id="run-1", name="gpt")
    assert (tmp_path / "costs.parquet").read_bytes()[:4] == b"PAR1"


@pytest.mark.parametrize("name", ["costs", "costs.xlsx"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"has to end in \.csv or \.parquet"):
        write_charges(tmp_path / name, ENTRIES, run_id="run-1", name="gpt")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        write_charges(tmp_path / "no" / "costs.csv", ENTRIES, run_id="run-1", name="gpt")
