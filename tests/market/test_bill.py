import math

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import EgressTier, Offer, Placement
from cloudshift_lab.market.bill import MoveInputs, price_move, verdict
from cloudshift_lab.market.reasons import flip_price_micro_usd_per_h, flip_throughput_ratio

HOUR_S = 3600.0
USD = 1_000_000


def offer(cloud, price, **changes):
    return Offer(
        cloud=cloud, region="r", instance_type="m", price_micro_usd_per_h=price,
        source=f"{cloud} list", as_of="2026-07-30", **changes,
    )  # fmt: skip


def inputs(source_price=1_200_000, target_price=800_000, *, nodes=1, **changes):
    known = {
        "source_offer": offer("here", source_price),
        "target_offer": offer("there", target_price),
        "source_placement": Placement("here", "r", "m", nodes=nodes),
        "target_placement": Placement("there", "r", "m", nodes=nodes),
        "source_egress": (EgressTier(None, 90_000),),
        "as_of": "2026-07-01",
    }
    return MoveInputs(**(known | changes))


def with_horizon(given_inputs, seconds):
    return msgspec.structs.replace(given_inputs, remaining_s=seconds)


durations = st.floats(0, 1e6)
moves = st.builds(
    inputs,
    source_price=st.integers(0, 200 * USD),
    target_price=st.integers(0, 200 * USD),
    nodes=st.integers(1, 64),
    source_egress=st.sampled_from(
        [(), (EgressTier(None, 90_000),), (EgressTier(10, 90_000), EgressTier(None, 50_000))]
    ),
    egress_used_bytes=st.integers(0, 10**13),
    source_get_micro_usd_per_1000=st.integers(0, 10_000),
    target_put_micro_usd_per_1000=st.integers(0, 10_000),
    transfer_bytes=st.integers(0, 10**13),
    num_objects=st.none() | st.integers(0, 10**6),
    remaining_s=st.none() | durations,
    tokens_per_s_source=st.none() | st.floats(0, 1e9),
    throughput_ratio_target=st.floats(0.1, 10),
    pause_s=durations,
    transfer_s=durations,
    provision_s=durations,
    rehearsal_s=durations,
    rehearsal_steps=st.integers(0, 100),
    simulated=st.booleans(),
)
properties = settings(deadline=None)


@properties
@given(moves)
def test_the_lines_sum_exactly(given_inputs):
    bill = price_move(given_inputs)
    compute = sum(item.amount_micro_usd for item in bill.items if item.kind == "compute")
    assert bill.total_micro_usd == sum(item.amount_micro_usd for item in bill.items)
    assert bill.one_off_micro_usd + compute == bill.total_micro_usd
    assert all(item.amount_micro_usd >= 0 for item in bill.items if item.kind != "compute")
    assert all(item.amount_micro_usd == 0 for item in bill.items if item.kind == "note")


@properties
@given(moves)
def test_at_break_even_moving_costs_what_staying_costs(given_inputs):
    break_even_s = price_move(given_inputs).break_even_s
    assume(break_even_s is not None)
    bill = price_move(with_horizon(given_inputs, break_even_s))
    tolerance = max(1, bill.one_off_micro_usd * 1e-12)
    assert abs(bill.total_micro_usd) <= tolerance


@properties
@given(moves)
def test_there_is_a_break_even_exactly_when_the_target_is_cheaper_for_the_same_work(given_inputs):
    bill = price_move(given_inputs)
    assert (bill.break_even_s is not None) == (bill.saving_micro_usd_per_h > 0)
    if bill.break_even_s is None:
        assert verdict(bill)[0] == "stay"


@properties
@given(moves, st.integers(0, 10**12), st.floats(0, 1e5))
def test_more_bytes_longer_pauses_and_dearer_targets_never_make_a_move_cheaper(
    given_inputs, more_bytes, more_s
):
    before = price_move(given_inputs).total_micro_usd
    dearer = msgspec.structs.replace(
        given_inputs.target_offer,
        price_micro_usd_per_h=given_inputs.target_offer.price_micro_usd_per_h + 1000,
    )
    for change in (
        {"transfer_bytes": given_inputs.transfer_bytes + more_bytes},
        {"pause_s": given_inputs.pause_s + more_s},
        {"transfer_s": given_inputs.transfer_s + more_s},
        {"provision_s": given_inputs.provision_s + more_s},
        {"target_offer": dearer},
    ):
        after = price_move(msgspec.structs.replace(given_inputs, **change)).total_micro_usd
        assert after >= before


@properties
@given(moves, durations, durations)
def test_more_training_left_favours_the_side_that_is_cheaper_per_hour(given_inputs, one, other):
    short, long = sorted((one, other))
    less = price_move(with_horizon(given_inputs, short))
    more = price_move(with_horizon(given_inputs, long))
    if less.saving_micro_usd_per_h >= 0:
        assert more.total_micro_usd <= less.total_micro_usd
    else:
        assert more.total_micro_usd >= less.total_micro_usd


@properties
@given(moves)
def test_moving_to_the_same_place_at_the_same_price_is_never_worth_it(given_inputs):
    same = msgspec.structs.replace(
        given_inputs, target_offer=given_inputs.source_offer, throughput_ratio_target=1.0
    )
    assert price_move(same).total_micro_usd >= 0
    assert verdict(price_move(same))[0] == "stay"


@properties
@given(moves)
def test_the_flip_price_is_where_the_verdict_flips(given_inputs):
    assume(given_inputs.horizon_s >= 60)
    flip = flip_price_micro_usd_per_h(given_inputs)

    def verdict_at(price):
        changed = msgspec.structs.replace(given_inputs.target_offer, price_micro_usd_per_h=price)
        return verdict(price_move(msgspec.structs.replace(given_inputs, target_offer=changed)))[0]

    if flip is None:
        assert verdict_at(0) == "stay"
        return
    margin = 2000 + flip // 1000
    assert verdict_at(flip + margin) == "stay"
    if flip > margin:
        assert verdict_at(flip - margin) == "move"


@properties
@given(moves)
def test_the_flip_speed_is_where_the_verdict_flips(given_inputs):
    assume(given_inputs.horizon_s >= 60 and given_inputs.target_micro_usd_per_h >= 100_000)
    ratio = flip_throughput_ratio(given_inputs)
    assume(ratio is None or 1e-3 < ratio < 1e3)
    if ratio is None:
        assert verdict(price_move(given_inputs))[0] == "stay"
        return
    slower = msgspec.structs.replace(given_inputs, throughput_ratio_target=ratio * 0.99)
    faster = msgspec.structs.replace(given_inputs, throughput_ratio_target=ratio * 1.01)
    assert price_move(slower).total_micro_usd >= price_move(faster).total_micro_usd
    assert price_move(slower).total_micro_usd >= -10
    assert price_move(faster).total_micro_usd <= 10


@properties
@given(moves)
def test_a_bill_with_a_simulated_price_says_so_on_every_line(given_inputs):
    bill = price_move(given_inputs)
    assert bill.simulated == given_inputs.simulated
    assert {item.simulated for item in bill.items} == {bill.simulated}
    assert ("These prices are simulated." in bill.reasons) == bill.simulated


@properties
@given(moves)
def test_every_line_says_how_it_came_about_and_from_where(given_inputs):
    for item in price_move(given_inputs).items:
        assert item.basis and item.source and item.as_of and item.label


def test_one_simulated_offer_makes_the_bill_simulated():
    bill = price_move(inputs(target_offer=offer("there", 1, simulated=True)))
    assert bill.simulated
    assert all(item.simulated for item in bill.items)


# market research, 3.1: p5.48xlarge against 30 % cheaper, 128 TiB of egress in 6 h, 12 min start.
AWS = (
    EgressTier(10 * 1024, 90_000),
    EgressTier(50 * 1024, 85_000),
    EgressTier(150 * 1024, 70_000),
    EgressTier(None, 50_000),
)


def published(nodes, hours_left):
    return inputs(
        55_040_000,
        38_528_000,
        nodes=nodes,
        source_egress=(EgressTier(None, 10_000_000_000),),
        transfer_bytes=2**30,
        num_objects=0,
        transfer_s=6 * HOUR_S,
        provision_s=0.2 * HOUR_S,
        remaining_s=hours_left * HOUR_S,
    )


@pytest.mark.parametrize(
    ("nodes", "hours_left", "saving", "one_off", "net", "break_even_h", "says"),
    [
        (1, 48, 793, 10_239, -9_446, 620, "stay"),
        (1, 720, 11_889, 10_239, 1_650, 620, "move"),
        (8, 200, 26_419, 11_911, 14_508, 90, "move"),
        (64, 48, 50_725, 25_288, 25_437, 24, "move"),
    ],
)
def test_the_published_example_comes_out_to_the_dollar(
    nodes, hours_left, saving, one_off, net, break_even_h, says
):
    bill = price_move(published(nodes, hours_left))
    assert round((bill.one_off_micro_usd - bill.total_micro_usd) / USD) == saving
    assert round(bill.one_off_micro_usd / USD) == one_off
    assert -bill.total_micro_usd / USD == pytest.approx(net, abs=1)
    assert round(bill.break_even_s / HOUR_S) == break_even_h
    assert verdict(bill)[0] == says


def test_only_a_staged_checkpoint_turns_the_published_small_case_round():
    staged = inputs(
        55_040_000,
        38_528_000,
        source_egress=(EgressTier(None, 90_000),),
        transfer_bytes=2000 * 2**30,
        num_objects=0,
        provision_s=0.2 * HOUR_S,
        remaining_s=48 * HOUR_S,
    )
    bill = price_move(staged)
    assert -bill.total_micro_usd / USD == pytest.approx(605, abs=1)
    assert verdict(bill)[0] == "move"


def test_the_examples_egress_is_what_128_tib_cost_on_aws():
    bill = price_move(inputs(source_egress=AWS, transfer_bytes=128 * 2**40))
    (egress,) = [item for item in bill.items if item.kind == "egress"]
    assert egress.amount_micro_usd == 9_994_240_000
    assert "$0.0700/GB" in egress.basis


def test_a_bill_of_known_numbers_line_by_line():
    bill = price_move(
        inputs(
            3_600_000,
            1_800_000,
            nodes=2,
            transfer_bytes=10 * 2**30,
            num_objects=1000,
            source_get_micro_usd_per_1000=400,
            target_put_micro_usd_per_1000=5000,
            provision_s=100.0,
            transfer_s=50.0,
            pause_s=10.0,
            remaining_s=7200.0,
        )
    )
    amounts = {item.kind: item.amount_micro_usd for item in bill.items if item.kind != "note"}
    assert amounts == {
        "egress": 900_000,
        "requests": 5_400,
        "overlap": 100_000,
        "transfer": 50_000,
        "pause": 30_000,
        "compute": -7_200_000,
    }
    bases = {item.kind: item.basis for item in bill.items if item.kind != "note"}
    assert bases == {
        "egress": "10.7 GB x $0.0900/GB (1 GB = 2^30 bytes)",
        "requests": "1,000 reads x $0.0004/1,000 + 1,000 writes x $0.0050/1,000",
        "overlap": "1 min 40 s x 2 nodes x $1.80/h",
        "transfer": "50 s x 2 nodes x $1.80/h",
        "pause": "10 s x ($7.20 source + $3.60 target)/h",
        "compute": "2 h x (2 nodes x $1.80/h - 2 nodes x $3.60/h)",
    }
    assert (bill.one_off_micro_usd, bill.saving_micro_usd_per_h) == (1_085_400, 3_600_000)
    assert bill.break_even_s == pytest.approx(1085.4)


def test_a_faster_target_needs_fewer_hours():
    bill = price_move(
        inputs(1_000_000, 1_500_000, throughput_ratio_target=2.0, throughput_reason="measured",
               remaining_s=HOUR_S)
    )  # fmt: skip
    assert bill.saving_micro_usd_per_h == 250_000
    assert verdict(bill)[0] == "move"
    assert any("2.00 x the source (measured)" in item.basis for item in bill.items)


def test_without_a_known_end_one_hour_is_counted_and_said():
    bill = price_move(inputs())
    assert sum(item.amount_micro_usd for item in bill.items if item.kind == "compute") == -400_000
    assert any("one hour" in item.basis for item in bill.items)
    assert any("one hour" in reason for reason in bill.reasons)


def test_a_run_that_is_nearly_done_stays():
    says, reasons = verdict(price_move(inputs(pause_s=60.0, remaining_s=30.0)))
    assert says == "stay"
    assert any("more than" in reason and "moving is cheaper" in reason for reason in reasons)


def test_the_reasons_say_what_would_flip_the_verdict():
    says, reasons = verdict(price_move(inputs(pause_s=36.0, remaining_s=2 * HOUR_S)))
    assert says == "move"
    text = "\n".join(reasons)
    assert reasons[0] == "Moving is $0.78 cheaper than staying, all costs counted."
    assert "it has paid for itself after 3 min" in text
    assert "With less than 3 min of training left, staying is cheaper." in text
    assert "costs more than $1.19 per node and hour" in text
    assert "slower than 0.67 x the source" in text


def test_a_dearer_target_never_pays_and_the_price_that_would_is_named():
    says, reasons = verdict(price_move(inputs(800_000, 1_200_000)))
    assert says == "stay"
    assert "costs $0.40/h more for the same work, so a move never pays" in reasons[1]
    assert any("if the target costs less than $0.80" in reason for reason in reasons)


def test_leaving_reserved_capacity_saves_nothing_and_says_so():
    bill = price_move(inputs(source_offer=offer("here", 5 * USD, market="reserved")))
    assert bill.saving_micro_usd_per_h == -800_000
    assert verdict(bill)[0] == "stay"
    assert any("not counted as a saving" in item.basis for item in bill.items)
    assert any("reserved" in reason for reason in bill.reasons)


def test_a_spot_target_is_noted():
    bill = price_move(inputs(target_offer=offer("there", 1, market="spot")))
    assert any(item.label == "spot machine" for item in bill.items)


def test_bytes_without_an_egress_price_are_noted():
    bill = price_move(inputs(source_egress=(), transfer_bytes=10**9))
    assert any(item.label == "egress" and item.kind == "note" for item in bill.items)


def test_free_machines_move_nowhere():
    says, reasons = verdict(price_move(inputs(0, 0)))
    assert says == "stay"
    assert reasons[0] == "Moving and staying cost the same, so nothing is gained."


@pytest.mark.parametrize(
    "change",
    [
        {"pause_s": -1.0},
        {"transfer_s": math.inf},
        {"provision_s": math.nan},
        {"remaining_s": -0.1},
        {"transfer_bytes": -1},
        {"num_objects": -1},
        {"throughput_ratio_target": 0.0},
        {"throughput_ratio_target": math.nan},
        {"egress_used_bytes": -1},
    ],
)
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(UsageError, match="mend the"):
        price_move(inputs(**change))
