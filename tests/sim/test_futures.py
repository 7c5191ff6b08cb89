"""Futures of a plan: equal to it when nothing is drawn, worse when more goes wrong, repeatable."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.asks import FuturesAsk
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import EgressTier, Market, Offer, Placement
from cloudshift_lab.core.plan import Closing, Futures, MissingNodesPolicy, Plan
from cloudshift_lab.core.save_policy import format_seconds
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.market.bill import MoveInputs, price_move
from cloudshift_lab.market.closing import ASSUMED_RESTORE_S
from cloudshift_lab.migration import with_digest
from cloudshift_lab.sim.futures import MOST_FUTURES, simulate
from cloudshift_lab.sim.odds import Hazards

SOURCE, TARGET = 800_000, 500_000
PAUSE_S, TRANSFER_S, PROVISION_S = 6.0, 16.0, 25.0
CALM = Hazards()
CLOSINGS = (
    Closing("copy", PAUSE_S, PAUSE_S, 400_000_000),
    Closing("replay", 2.5, 0.8, 520_000_000, replayed_steps=4),
)


def make_plan(*, market: Market = "on-demand", nodes: int = 1, **changes: object) -> Plan:
    """A move that pays for itself, priced by the market's own code."""
    here = Placement("aws-sim", "us-east-1", "a")
    there = Placement("gcp-sim", "us-central1", "b", nodes=nodes, market=market)
    bill = price_move(
        MoveInputs(
            source_offer=Offer("aws-sim", "us-east-1", "a", SOURCE),
            target_offer=Offer("gcp-sim", "us-central1", "b", TARGET, market=market),
            source_placement=here, target_placement=there,
            source_egress=(EgressTier(None, 90_000),), source_get_micro_usd_per_1000=400,
            target_put_micro_usd_per_1000=5_000, state_bytes=500_000_000,
            transfer_bytes=400_000_000, remaining_s=36_000.0,
            pause_s=PAUSE_S, transfer_s=TRANSFER_S, provision_s=PROVISION_S,
        )
    )  # fmt: skip
    plan = Plan("mig-1", "run-1", here, there, "s3://a", "gs://b", 1, bill, "move", 1e3, 1.6e3)
    return with_digest(msgspec.structs.replace(plan, **changes))


def make_ask(plan: Plan | None = None, **changes: object) -> FuturesAsk:
    """What a conductor that measured everything asks."""
    ask = FuturesAsk(
        plan=plan or make_plan(), step_s=0.3, state_bytes=500_000_000, bytes_per_s=25e6,
        save_s=1.2, provision_s=PROVISION_S, restore_s=2.0,
        price_micro_usd_per_h=(SOURCE, TARGET), num=200,
    )  # fmt: skip
    return msgspec.structs.replace(ask, **changes)


def test_when_nothing_is_drawn_every_future_is_the_plan() -> None:
    plan = make_plan()
    futures = simulate(make_ask(plan), hazards=CALM, spread=0.0)
    for share in ("p10", "p50", "p90"):
        assert getattr(futures.pause_s, share) == pytest.approx(plan.bill.pause_s, abs=1e-6)
        cost = getattr(futures.cost_micro_usd, share)
        assert cost == pytest.approx(plan.bill.one_off_micro_usd, abs=3)
        arrived = getattr(futures.finish_s, share)
        assert arrived == pytest.approx(PROVISION_S + TRANSFER_S + PAUSE_S + 1.0, abs=0.01)
    assert (futures.rolled_back, futures.lost_steps) == (0.0, 0.0)


def test_a_replayed_closing_pauses_as_long_as_planned_and_rehearses_before() -> None:
    plan = make_plan(closing="replay", closings=CLOSINGS, rehearsal_steps=3)
    futures = simulate(make_ask(plan), hazards=CALM, spread=0.0)
    assert futures.pause_s.p50 == pytest.approx(2.5, abs=1e-6)
    rehearsed_s = 2.0 + 3 * 0.3
    expected = PROVISION_S + TRANSFER_S + rehearsed_s + 2.5 + 1.0
    assert futures.finish_s.p50 == pytest.approx(expected, abs=0.01)


def test_without_failures_all_arrive_and_spread_around_the_plan() -> None:
    futures = simulate(make_ask(num=1000), hazards=CALM)
    assert (futures.rolled_back, futures.lost_steps) == (0.0, 0.0)
    assert futures.pause_s.p10 < PAUSE_S < futures.pause_s.p90
    assert futures.pause_s.p50 == pytest.approx(PAUSE_S, rel=0.15)
    for spread in (futures.pause_s, futures.cost_micro_usd, futures.finish_s):
        assert spread.p10 < spread.p50 < spread.p90


@given(
    st.sampled_from(["source", "target", "target_notice"]),
    st.integers(0, 2**40),
)
@settings(max_examples=12, deadline=None)
def test_more_of_any_failure_never_means_fewer_lost_moves(kind: str, seed: int) -> None:
    told = [
        simulate(make_ask(num=60, seed=seed), hazards=Hazards(**{kind: float(rate)}))
        for rate in (0, 40, 4_000)
    ]
    harm = [futures.rolled_back + futures.lost_steps for futures in told]
    assert harm == sorted(harm)
    assert (harm[0], harm[-1] > 0.5) == (0.0, True)


def test_a_target_that_dies_before_the_commit_is_rolled_back_and_costs_less() -> None:
    calm = simulate(make_ask(), hazards=CALM)
    futures = simulate(make_ask(), hazards=Hazards(target=20_000.0))
    assert futures.rolled_back == 1.0
    assert futures.lost_steps == 0.0
    assert futures.cost_micro_usd.p90 < calm.cost_micro_usd.p10


def test_futures_of_which_none_arrive_say_so() -> None:
    futures = simulate(make_ask(), hazards=Hazards(target=20_000.0))
    assert "none arrived, so no pause is known" in futures.basis


def test_futures_stop_where_the_driver_does() -> None:
    spent = simulate(make_ask(), hazards=CALM, spread=0.0).cost_micro_usd.p50
    near = make_plan(limit_micro_usd=round(spent * 1.01))
    assert simulate(make_ask(near), hazards=CALM, spread=0.0).rolled_back == 1.0


def test_an_unmeasured_restore_is_assumed_as_the_bill_assumes_it() -> None:
    assert (
        f"restore {format_seconds(ASSUMED_RESTORE_S)}" in simulate(make_ask(restore_s=None)).basis
    )


def test_a_source_that_dies_first_loses_steps_and_still_moves() -> None:
    futures = simulate(make_ask(), hazards=Hazards(source=20_000.0))
    assert futures.lost_steps == 1.0
    assert futures.rolled_back == 0.0
    assert futures.pause_s.p50 > PROVISION_S  # nobody trained from the failure on


def test_a_notice_at_the_source_is_used_to_save_everything() -> None:
    futures = simulate(make_ask(), hazards=Hazards(source_notice=400.0))
    assert futures.lost_steps == 0.0
    assert futures.pause_s.p50 > PAUSE_S


def test_a_save_that_outlasts_the_notice_loses_steps() -> None:
    bill = msgspec.structs.replace(make_plan().bill, pause_s=90.0)
    slow = make_ask(with_digest(msgspec.structs.replace(make_plan(), bill=bill)), save_s=60.0)
    assert simulate(slow, hazards=Hazards(source_notice=4_000.0)).lost_steps > 0.9


def test_a_spot_target_is_taken_away_more_often_than_one_on_demand() -> None:
    on_demand = simulate(make_ask(num=1000))
    spot = simulate(make_ask(make_plan(market="spot", nodes=64), num=1000))
    assert spot.rolled_back > on_demand.rolled_back
    assert "spot notice at the target" in spot.basis
    assert "spot notice" not in on_demand.basis


def test_a_killed_conductor_only_takes_longer() -> None:
    calm = simulate(make_ask(), hazards=CALM)
    futures = simulate(make_ask(), hazards=Hazards(conductor=500.0))
    assert (futures.rolled_back, futures.lost_steps) == (0.0, 0.0)
    assert futures.finish_s.p50 > calm.finish_s.p50


def test_a_link_that_comes_and_goes_delays_copies() -> None:
    calm = simulate(make_ask(), hazards=CALM)
    futures = simulate(make_ask(), hazards=Hazards(link=200.0))
    assert futures.rolled_back < 0.1
    assert futures.finish_s.p50 > calm.finish_s.p50


@pytest.mark.parametrize("policy", ["wait", "shrink"])
def test_a_policy_for_missing_nodes_saves_moves(policy: MissingNodesPolicy) -> None:
    hazards = Hazards(target=60.0)
    back = simulate(make_ask(make_plan(nodes=4)), hazards=hazards)
    kept = simulate(make_ask(make_plan(nodes=4, missing_nodes=policy)), hazards=hazards)
    assert kept.rolled_back < back.rolled_back


def test_a_limit_that_is_passed_ends_the_move() -> None:
    cheap = make_plan(limit_micro_usd=3_000)
    none_arrived = simulate(make_ask(cheap), hazards=CALM)
    assert (none_arrived.rolled_back, none_arrived.pause_s) == (1.0, None)
    assert "none arrived, so no pause is known" in none_arrived.basis
    assert from_json(to_json(none_arrived), Futures) == none_arrived
    enough = make_plan(limit_micro_usd=3_000_000)
    assert simulate(make_ask(enough), hazards=CALM).rolled_back == 0.0


def test_several_approvers_change_nothing_of_what_is_simulated() -> None:
    two = simulate(make_ask(make_plan(approvals_needed=3)), hazards=CALM)
    assert two.finish_s == simulate(make_ask(), hazards=CALM).finish_s


def test_a_slower_target_than_thought_may_ask_again() -> None:
    large = make_plan(rehearsal_steps=2, nodes=100)
    dear = msgspec.structs.replace(large.bill, total_micro_usd=-100)
    plan = with_digest(msgspec.structs.replace(large, bill=dear))
    futures = simulate(make_ask(plan, num=400), hazards=CALM)
    assert "ask again for a worse bill" in futures.basis
    assert futures.rolled_back == 0.0


def test_the_seed_decides_everything() -> None:
    hazards = Hazards(5.0, 5.0, 5.0, 5.0, 5.0, 5.0)
    one, same, other = (simulate(make_ask(seed=seed), hazards=hazards) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_what_nobody_measured_is_called_assumed_and_spreads_wider() -> None:
    measured = simulate(make_ask(), hazards=CALM)
    bare = FuturesAsk(plan=make_plan(), price_micro_usd_per_h=(SOURCE, TARGET), num=200)
    assumed = simulate(bare, hazards=CALM)
    assert "assumed: step" in assumed.basis
    assert "assumed" not in measured.basis.split("failures")[0]
    assert measured.finish_s.p90 - measured.finish_s.p10 < (
        assumed.finish_s.p90 - assumed.finish_s.p10
    )


@pytest.mark.parametrize("num", [0, -1, MOST_FUTURES + 1])
def test_a_number_of_futures_out_of_range_is_refused(num: int) -> None:
    with pytest.raises(UsageError, match="ask for 1 to"):
        simulate(make_ask(num=num))


def ask_the_module(data: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "cloudshift_lab.sim.futures"]
    return subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)


def test_the_module_answers_json_with_json() -> None:
    ask = make_ask(num=50)
    answered = ask_the_module(to_json(ask))
    assert (answered.returncode, answered.stderr) == (0, b"")
    assert from_json(answered.stdout, Futures) == simulate(ask)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"plan": 3}'])
def test_the_module_refuses_in_one_line_what_it_cannot_read(damage: bytes) -> None:
    answered = ask_the_module(damage)
    assert (answered.returncode, answered.stdout) == (2, b"")
    assert len(answered.stderr.splitlines()) == 1


def test_a_plan_that_was_changed_after_it_was_made_is_refused() -> None:
    changed = msgspec.structs.replace(make_plan(), limit_micro_usd=7)
    with pytest.raises(UsageError, match="digest"):
        simulate(make_ask(changed))
