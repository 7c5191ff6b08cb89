"""The ledger: entries add up to what every attempt is paid, however time is split."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.costs import COST_KINDS
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.market.ledger import (
    AFTER,
    COPIES,
    PAUSE,
    STANDS_BY,
    STARTS,
    TRAINING,
    Carried,
    Stay,
    Use,
    Work,
    account,
)

AWS, GCP = Placement("aws-sim", "us-east-1", "m"), Placement("gcp-sim", "us-central1", "m")
BEGIN = 1_700_000_000.0
NEVER = float("inf")
properties = settings(deadline=None)


def stay(begin=0.0, end=3600.0, *, price=3_600_000, works=None, generation=1, **changes):
    works_from, works_until = works or (begin, end)
    return Stay(
        generation=generation, placement=changes.pop("placement", AWS), micro_usd_per_h=price,
        begin=BEGIN + begin, end=BEGIN + end, works_from=BEGIN + works_from,
        works_until=BEGIN + works_until, source="list price", **changes,
    )  # fmt: skip


def uses(*parts):
    return tuple(Use(part, BEGIN + begin, BEGIN + end) for part, begin, end in parts)


def by_part(ledger, generation=None):
    return {
        entry.part: entry.micro_usd
        for entry in ledger.entries
        if generation in (None, entry.generation)
    }


seconds = st.floats(0, 1e6, allow_nan=False)
prices = st.integers(0, 500_000_000)
parts = st.sampled_from([TRAINING, "saving", "lost work", "idle", "starting", "detecting"])


@st.composite
def stretches(draw):
    edges = sorted(draw(st.lists(seconds, min_size=2, max_size=10)))
    return uses(*((draw(parts), a, b) for a, b in itertools.pairwise(edges)))


@st.composite
def stays(draw):
    found = []
    for generation in range(1, draw(st.integers(1, 4)) + 1):
        begin, works_from, works_until, end = sorted(
            draw(st.lists(seconds, min_size=4, max_size=4))
        )
        found.append(
            stay(begin, end, price=draw(prices), works=(works_from, works_until),
                 generation=generation, beside=draw(stretches()))
        )  # fmt: skip
    return found


def paid(given_stays):
    return sum(
        round(each.micro_usd_per_h * (each.end - each.begin) / HOUR_S) for each in given_stays
    )


@properties
@given(stays(), stretches())
def test_the_entries_add_up_to_what_is_paid_exactly(given_stays, given_uses):
    ledger = account(given_stays, given_uses)
    assert ledger.total_micro_usd == sum(entry.micro_usd for entry in ledger.entries)
    assert ledger.total_micro_usd == sum(ledger.by_kind.values()) == paid(given_stays)
    assert set(ledger.by_kind) == set(COST_KINDS)


@properties
@given(stays(), stretches(), st.floats(10.0, 1e6))
def test_splitting_time_changes_no_amount(given_stays, given_uses, every_s):
    whole, split = (
        account(given_stays, given_uses),
        account(given_stays, given_uses, every_s=max(every_s, 2000.0)),
    )
    assert split.by_kind == whole.by_kind
    for entry in whole.entries:
        same = [
            each for each in split.entries
            if (each.generation, each.kind, each.part, each.migration_id)
            == (entry.generation, entry.kind, entry.part, entry.migration_id)
        ]  # fmt: skip
        assert sum(each.micro_usd for each in same) == entry.micro_usd
        assert sum(each.seconds for each in same) == pytest.approx(entry.seconds)


@properties
@given(stays(), stretches(), seconds)
def test_what_is_added_later_is_what_was_paid_meanwhile(given_stays, given_uses, until):
    """A ledger of an earlier moment and the rest make the later one, to the micro-dollar."""
    cut = [
        msgspec.structs.replace(each, end=min(each.end, BEGIN + until))
        for each in given_stays
        if each.begin < BEGIN + until
    ]
    before, after = account(cut, given_uses), account(given_stays, given_uses)
    assert before.total_micro_usd == paid(cut)
    assert after.total_micro_usd - before.total_micro_usd == paid(given_stays) - paid(cut)


@properties
@given(stays(), stretches())
def test_hours_do_not_cross_an_entry(given_stays, given_uses):
    for entry in account(given_stays, given_uses, every_s=HOUR_S).entries:
        assert entry.begin // HOUR_S == (max(entry.begin, entry.end - 1e-3)) // HOUR_S


def test_time_goes_where_it_went():
    ledger = account(
        [stay()],
        uses(("starting", 0, 360), (TRAINING, 360, 2880), ("saving", 2880, 3060),
             ("lost work", 3060, 3240), ("idle", 3240, 3420)),
    )  # fmt: skip
    assert {kind: amount for kind, amount in ledger.by_kind.items() if amount} == {
        "compute": 2_700_000, "overhead": 540_000, "lost_work": 180_000, "idle": 180_000,
    }  # fmt: skip
    assert by_part(ledger)[TRAINING] == 2_700_000  # the last three minutes are named nothing else


def test_both_sides_of_a_move_are_told_apart():
    moving = uses((STARTS, 1000, 1100), (COPIES, 1100, 1400), (PAUSE, 1400, 1410))
    source = stay(0, 1500, works=(0, 1400), beside=moving, next_migration_id="mig-1")
    target = stay(
        1000, 3600, works=(1410, NEVER), generation=2, placement=GCP, price=1_800_000,
        beside=moving, migration_id="mig-1",
    )  # fmt: skip
    ledger = account([source, target], ())
    assert by_part(ledger, 1) == {TRAINING: 1_400_000, PAUSE: 10_000, AFTER: 90_000}
    assert by_part(ledger, 2) == {
        STARTS: 50_000, COPIES: 150_000, PAUSE: 5_000, TRAINING: 1_095_000,
    }  # fmt: skip
    assert ledger.by_kind["overlap"] == 290_000
    assert ledger.by_kind["overhead"] == 15_000
    assert {entry.migration_id for entry in ledger.entries if entry.kind == "overlap"} == {"mig-1"}


def test_a_target_that_never_took_over_is_all_overlap():
    target = stay(0, 60, works=(NEVER, NEVER), migration_id="mig-1")
    ledger = account([target], uses((TRAINING, 0, 60)))
    assert by_part(ledger) == {STANDS_BY: 60_000}
    assert ledger.by_kind["compute"] == 0


def test_bytes_and_requests_are_entered_with_their_move():
    carried = Carried(
        migration_id="mig-1", source=AWS, begin=BEGIN, end=BEGIN + 9, num_bytes=10**9,
        egress_micro_usd=83_819, egress_basis="1.0 GB x $0.09/GB", num_requests=24,
        requests_micro_usd=130, requests_basis="24 reads and writes",
    )  # fmt: skip
    ledger = account([], (), [carried])
    assert (ledger.by_kind["egress"], ledger.by_kind["requests"]) == (83_819, 130)
    assert [(entry.kind, entry.quantity) for entry in ledger.entries] == [
        ("egress", 10**9), ("requests", 24),
    ]  # fmt: skip


def test_a_million_tokens_cost_everything_that_was_paid_for_them():
    found = account([stay()], uses(("starting", 0, 1800)), work=Work(100, 2_000_000))
    assert found.micro_usd_per_million_tokens == 1_800_000
    assert account([stay()], ()).micro_usd_per_million_tokens is None
    assert account([stay()], (), work=Work(100, None)).micro_usd_per_million_tokens is None


@pytest.mark.parametrize("wrong", [stay(price=-1), stay(begin=10, end=5)])
def test_a_price_below_nothing_and_time_that_runs_backwards_are_refused(wrong):
    with pytest.raises(UsageError, match="mend its journal"):
        account([wrong], ())
