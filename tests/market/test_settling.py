"""A bill beside the ledger: settled with what was measured, every line is what was entered."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.placement import EgressTier, Offer, Placement
from cloudshift_lab.market import egress
from cloudshift_lab.market.bill import MoveInputs, price_move
from cloudshift_lab.market.ledger import (
    COPIES,
    PAUSE,
    REHEARSES,
    STARTS,
    Carried,
    Stay,
    Use,
    account,
)
from cloudshift_lab.market.settling import Measured, check_bill

BEGIN = 1_700_000_000.0
TIERS = (EgressTier(None, 90_000),)
FORECAST = MoveInputs(
    source_offer=Offer("here", "r", "m", 3_600_000),
    target_offer=Offer("there", "r", "m", 1_800_000),
    source_placement=Placement("here", "r", "m"), target_placement=Placement("there", "r", "m"),
    source_egress=TIERS, source_get_micro_usd_per_1000=400, target_put_micro_usd_per_1000=5000,
    transfer_bytes=10**9, pause_s=8.0, transfer_s=20.0, provision_s=20.0, rehearsal_s=5.0,
    rehearsal_steps=3,
)  # fmt: skip


def lived(starts, copies, rehearses, pause, trained, *, num_bytes=10**9, inputs=FORECAST):
    """The checks of a move that took so long, each part in seconds."""
    ends = [1000.0]
    for each in (starts, copies, rehearses, pause, trained):
        ends.append(ends[-1] + each)
    names = (STARTS, COPIES, REHEARSES, PAUSE)
    beside = tuple(
        Use(name, BEGIN + a, BEGIN + b) for name, a, b in zip(names, ends, ends[1:], strict=False)
    )
    source = Stay(
        generation=1, placement=inputs.source_placement, begin=BEGIN, end=BEGIN + ends[4],
        micro_usd_per_h=inputs.source_offer.price_micro_usd_per_h, works_from=BEGIN,
        works_until=BEGIN + ends[3], beside=beside, next_migration_id="mig-1",
    )  # fmt: skip
    target = Stay(
        generation=2, placement=inputs.target_placement, begin=BEGIN + 1000, end=BEGIN + ends[5],
        micro_usd_per_h=inputs.target_offer.price_micro_usd_per_h, works_from=BEGIN + ends[4],
        works_until=float("inf"), beside=beside, migration_id="mig-1",
    )  # fmt: skip
    carried = Carried(
        migration_id="mig-1", source=inputs.source_placement, begin=BEGIN, end=BEGIN,
        num_bytes=num_bytes, egress_micro_usd=egress.cost(TIERS, 0, num_bytes), egress_basis="",
        num_requests=24, requests_micro_usd=round(24 * 5.4), requests_basis="",
    )  # fmt: skip
    ledger = account([source, target], (), [carried])
    measured = Measured(
        generation=2, num_bytes=num_bytes, num_requests=24, starts_s=starts, copies_s=copies,
        rehearses_s=rehearses, pause_s=pause, trained_s=trained,
    )  # fmt: skip
    return check_bill("mig-1", price_move(inputs), inputs, measured, ledger.entries)


seconds = st.floats(0.0, 10_000.0)


@settings(deadline=None)
@given(st.tuples(seconds, seconds, seconds, seconds, seconds))
def test_a_settled_bill_is_the_ledger_to_a_few_micro_dollars(parts):
    for check in lived(*parts):
        assert abs(check.settled_micro_usd - check.ledger_micro_usd) <= 3, check


def test_the_forecast_stands_beside_it_as_it_was_shown():
    checks = {check.label: check for check in lived(40.0, 20.0, 5.0, 8.0, 3600.0)}
    starts = checks["both run while the target starts"]
    assert (starts.forecast_micro_usd, starts.ledger_micro_usd) == (10_000, 20_000)
    pause = checks["nobody trains during the hand-over"]
    assert (pause.forecast_micro_usd, pause.ledger_micro_usd) == (12_000, 12_000)
    assert checks["egress from here"].ledger_micro_usd == 83_819
    saved = checks["training there instead of here"]
    assert saved.forecast_micro_usd == saved.ledger_micro_usd == -1_800_000
    assert sum(check.forecast_micro_usd for check in checks.values()) == (
        price_move(FORECAST).total_micro_usd
    )


def test_a_price_that_was_not_paid_shows_in_its_line():
    dearer = msgspec.structs.replace(FORECAST.target_offer, price_micro_usd_per_h=3_600_000)
    paid = msgspec.structs.replace(FORECAST, target_offer=dearer)
    entries_at_double = {
        check.label: check for check in lived(40.0, 20.0, 5.0, 8.0, 0.0, inputs=paid)
    }
    line = entries_at_double["both run while the target starts"]
    assert line.apart == pytest.approx(0.0)
    off = msgspec.structs.replace(line, settled_micro_usd=line.settled_micro_usd // 2)
    assert off.apart == pytest.approx(-0.5)


def test_a_reserved_source_is_in_no_bill_and_in_no_line_beside_it():
    reserved = msgspec.structs.replace(
        FORECAST,
        source_offer=msgspec.structs.replace(FORECAST.source_offer, market="reserved"),
        source_placement=msgspec.structs.replace(FORECAST.source_placement, market="reserved"),
    )
    pause = {check.kind: check for check in lived(1.0, 1.0, 1.0, 8.0, 1.0, inputs=reserved)}[
        "pause"
    ]
    assert pause.settled_micro_usd == pause.ledger_micro_usd == 4_000


def test_a_line_that_is_nothing_on_both_sides_is_not_apart():
    empty = {check.label: check for check in lived(0.0, 0.0, 0.0, 8.0, 0.0)}
    assert empty["both run while the target starts"].apart is None
