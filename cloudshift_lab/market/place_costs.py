"""What finishing a run elsewhere costs against staying, likely, at worst and at best."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cloudshift_lab.core.money import HOUR_S, format_duration, format_usd
from cloudshift_lab.core.placement import EgressTier, Placement
from cloudshift_lab.core.plan import Bill, BillItem
from cloudshift_lab.market.bill import price_move
from cloudshift_lab.market.commitments import Commitment, marginal
from cloudshift_lab.market.estimate import estimate_transfer_s
from cloudshift_lab.market.inputs import DEFAULT_HORIZON_S, MoveInputs
from cloudshift_lab.market.lines import NOT_COUNTED_SPOT
from cloudshift_lab.market.performance import Accelerator, Speed, node_ratio
from cloudshift_lab.market.quotes import Quote, offer_of

ASSUMED_SPOT_LIFE_S = 6 * HOUR_S
_LIFE_WITHIN = 3.0
_SLOW_LINK, _FAST_LINK = 2.0, 0.7


class Plan(NamedTuple):
    """One place, and what a move there consists of; see ``advice.Question``."""

    here: Quote
    there: Quote
    nodes: int
    left_s: float | None
    carry_bytes: int
    egress: tuple[EgressTier, ...]
    bytes_per_s: float | None
    egress_used_bytes: int
    pause_s: float
    start_s: float
    spot_life_s: float | None
    commitments: tuple[Commitment, ...]


class Costs(NamedTuple):
    """A bill, and what it could be: totals, seconds until done, and where it flips."""

    bill: Bill
    dearest_micro_usd: int
    cheapest_micro_usd: int
    finish_s: float
    flip_price_micro_usd_per_h: int | None
    flip_ratio: float | None
    assumptions: tuple[str, ...]


class _Case(NamedTuple):
    """How things may turn out: speed there over here, the copy's seconds, a spot machine's life."""

    ratio: float
    transfer_s: float
    life_here_s: float
    life_there_s: float


def cost_there(plan: Plan) -> Costs:
    """Itemise the likely case; price the bad and the good one for the interval.

    The bad case has the slow end of the speed's interval, half the link and machines that last a
    third as long; the good one the opposite. They stand for P90 and P10 of the cost.

    Raises:
        UsageError: A size, price or duration is out of range.
    """
    speed = _speed(plan)
    copy = estimate_transfer_s(plan.carry_bytes, plan.bytes_per_s)
    life_s = plan.spot_life_s or ASSUMED_SPOT_LIFE_S
    likely = _Case(speed.mid, copy.seconds, life_s, life_s)
    bad = _Case(speed.low, copy.seconds * _SLOW_LINK, life_s, life_s / _LIFE_WITHIN)
    good = _Case(speed.high, copy.seconds * _FAST_LINK, life_s, life_s * _LIFE_WITHIN)
    bill = _bill(plan, likely, speed)
    return Costs(
        bill, _bill(plan, bad, speed).total_micro_usd, _bill(plan, good, speed).total_micro_usd,
        _paid_there_s(plan, likely), _flip_price(plan, likely, bill),
        _flip_ratio(plan, likely, bill),
        _assumptions(plan, speed, copy.basis, life_s),
    )  # fmt: skip


def _speed(plan: Plan) -> Speed:
    here, there = (_accelerator(quote) for quote in (plan.here, plan.there))
    return node_ratio(here, there)


def _accelerator(quote: Quote) -> Accelerator:
    return Accelerator(quote.accelerator, quote.num_accelerators, quote.accelerator_memory_gb)


def _bill(plan: Plan, case: _Case, speed: Speed) -> Bill:
    inputs = _inputs(plan, case, speed)
    bill = price_move(inputs)
    extra = tuple(item for item in _restarts(plan, case, inputs) if item.amount_micro_usd)
    if not extra:
        return bill
    restarts = sum(item.amount_micro_usd for item in extra)
    saving = bill.saving_micro_usd_per_h - round(restarts * HOUR_S / inputs.horizon_s)
    items = (item for item in bill.items if item.label != NOT_COUNTED_SPOT)
    return msgspec.structs.replace(
        bill, items=(*items, *extra), total_micro_usd=bill.total_micro_usd + restarts,
        saving_micro_usd_per_h=saving,
        break_even_s=bill.one_off_micro_usd * HOUR_S / saving if saving > 0 else None,
    )  # fmt: skip


def _flip_price(plan: Plan, case: _Case, bill: Bill) -> int | None:
    """Of one node there, per hour, at which both cost the same; None: not even for nothing."""
    price = _inputs_price(plan)
    paid_h = _paid_there_s(plan, case) * plan.nodes / HOUR_S
    flip = price - bill.total_micro_usd / paid_h
    return round(flip) if flip > 0 else None


def _flip_ratio(plan: Plan, case: _Case, bill: Bill) -> float | None:
    """Of the speeds, at which both cost the same; None: at no speed."""
    trained_s = _left_s(plan) / case.ratio * _restart_factor(plan, case)
    training = _inputs_price(plan) * plan.nodes * trained_s / HOUR_S
    rest = training - bill.total_micro_usd
    return training * case.ratio / rest if rest > 0 and training > 0 else None


def _paid_there_s(plan: Plan, case: _Case) -> float:
    trained_s = _left_s(plan) / case.ratio * _restart_factor(plan, case)
    return plan.start_s + case.transfer_s + plan.pause_s + trained_s


def _restart_factor(plan: Plan, case: _Case) -> float:
    return 1 + plan.start_s / case.life_there_s if plan.there.market == "spot" else 1.0


def _left_s(plan: Plan) -> float:
    return DEFAULT_HORIZON_S if plan.left_s is None else plan.left_s


def _inputs_price(plan: Plan) -> int:
    return marginal(plan.there, plan.nodes, plan.commitments)[0]


def _inputs(plan: Plan, case: _Case, speed: Speed) -> MoveInputs:
    there, why_there = marginal(plan.there, plan.nodes, plan.commitments)
    here, why_here = marginal(plan.here, plan.nodes, plan.commitments)
    target, source = offer_of(plan.there), offer_of(plan.here)
    if why_there:
        target = msgspec.structs.replace(
            target, price_micro_usd_per_h=there, source=f"{target.source}; {why_there}"
        )
    if why_here:
        market = source.market if here else "reserved"
        source = msgspec.structs.replace(source, price_micro_usd_per_h=here, market=market)
    return MoveInputs(
        source_offer=source, target_offer=target,
        source_placement=_placement(plan.here, plan.nodes),
        target_placement=_placement(plan.there, plan.nodes),
        source_egress=plan.egress, egress_used_bytes=plan.egress_used_bytes,
        state_bytes=plan.carry_bytes, transfer_bytes=plan.carry_bytes, remaining_s=plan.left_s,
        throughput_ratio_target=case.ratio, throughput_reason=speed.basis, pause_s=plan.pause_s,
        transfer_s=case.transfer_s, provision_s=plan.start_s, as_of=target.as_of,
    )  # fmt: skip


def _placement(quote: Quote, nodes: int) -> Placement:
    return Placement(
        quote.cloud, quote.region, quote.instance_type, nodes=nodes, market=quote.market
    )


def _restarts(plan: Plan, case: _Case, inputs: MoveInputs) -> tuple[BillItem, ...]:
    """Starts after preemptions: there they cost, here they would have."""
    there = _restart_item(
        plan, plan.there, inputs.target_micro_usd_per_h, inputs.horizon_s / case.ratio,
        case.life_there_s, sign=1,
    )  # fmt: skip
    here = _restart_item(
        plan, plan.here, inputs.source_micro_usd_per_h, inputs.horizon_s, case.life_here_s, sign=-1
    )
    return there, here


def _restart_item(
    plan: Plan, quote: Quote, micro_usd_per_h: int, for_s: float, life_s: float, *, sign: int
) -> BillItem:
    is_spot = quote.market == "spot"
    num = for_s / life_s if is_spot else 0.0
    side = "there" if sign > 0 else "here, saved"
    known = "measured" if plan.spot_life_s else "assumed"
    return BillItem(
        label=f"restarts after preemptions {side}",
        amount_micro_usd=sign * round(num * plan.start_s * micro_usd_per_h / HOUR_S),
        basis=f"{num:.1f} x {format_duration(plan.start_s)} x {format_usd(micro_usd_per_h)}/h; "
        f"a machine lasts {format_duration(life_s)} ({known})",
        source=quote.source, kind="pause", simulated=quote.confidence == "simulated",
    )  # fmt: skip


def _assumptions(plan: Plan, speed: Speed, copy: str, life_s: float) -> tuple[str, ...]:
    found = [
        f"it trains {speed.mid:.2f} times as fast there ({speed.low:.2f} to {speed.high:.2f}: "
        f"{speed.basis})",
        f"copying {copy}, while the run trains on and both sides are paid",
    ]
    if plan.there.market == "spot":
        how = "measured" if plan.spot_life_s else "assumed; nothing was observed there"
        found.append(f"spot machines there last {format_duration(life_s)} on average ({how})")
        found.append("a spot price does not say that machines can be had; ask before it counts")
    if not plan.egress and plan.carry_bytes:
        found.append(f"what leaving {plan.here.cloud} costs is not known, and not counted")
    return tuple(found)
