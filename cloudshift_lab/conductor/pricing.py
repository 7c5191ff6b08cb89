"""From what was measured to a plan with its bill, and from what happened to its actual cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from cloudshift_lab.conductor.forecast import Forecast
from cloudshift_lab.core.asks import Carrier, ClosingWish
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, MICRO, format_bytes, format_duration
from cloudshift_lab.core.placement import Cloud, Offer, Placement
from cloudshift_lab.core.plan import Bill, Closing, Fallback, MissingNodesPolicy, Plan
from cloudshift_lab.core.views import CostLine
from cloudshift_lab.market import egress
from cloudshift_lab.market.bill import MoveInputs, price_move, verdict
from cloudshift_lab.market.closing import (
    ASSUMED_RESTORE_S,
    ClosingInputs,
    chosen,
    weigh_closings,
)
from cloudshift_lab.market.estimate import estimate_transfer_s, num_requests
from cloudshift_lab.migration import Saga, with_digest

ASSUMED_PROVISION_S = 20.0
TOLERANCE_ELSEWHERE = 1e-3
_NOISE_OF_ONE_STEP = 0.7
_LIMIT_FACTOR = 2
_LIMIT_SLACK_MICRO_USD = MICRO
_LIMIT_WAIT_S = 1020.0  # a slow start, a fresh save, and ten minutes for a question


@dataclass(frozen=True)
class Measured:
    """What is known of the run at the moment of planning.

    ``egress_used_bytes`` is what earlier moves carried out of the source cloud this month;
    ``provision_s`` what the newest move to the same cloud needed to get its ranks ready,
    ``handover_s`` what the newest pause took beside carrying bytes (drain, proof, commit, restore),
    ``still_s`` how long nothing trained in the newest move that repeated steps; None before the
    first. Only moves that arrived are measured by.
    ``link_bytes_per_s`` is of earlier moves between the same two clouds, ``save_s`` of the run's
    newest save, from capture to commit.
    ``carried`` is what a move will carry, measured on the run's last saves, or None and in
    ``not_measured`` why: then one copy of the newest checkpoint is counted.
    """

    state_bytes: int = 0
    stored_bytes: int = 0
    tokens_per_s: float | None = None
    step_s: float = 0.0
    egress_used_bytes: int = 0
    provision_s: float | None = None
    handover_s: float | None = None
    still_s: float | None = None
    link_bytes_per_s: float | None = None
    save_s: float | None = None
    carried: Forecast | None = None
    not_measured: str = ""


@dataclass(frozen=True)
class Place:
    """One end of a move."""

    cloud: Cloud
    offer: Offer
    placement: Placement
    url: str


@dataclass(frozen=True)
class Terms:
    """What was agreed on beside the places; see ``Plan``.

    ``closing`` "auto" takes the better one by estimate. ``limit_micro_usd`` None: the bill's
    one-off costs twice, and a dollar or what the target costs while it starts slowly and a
    question is open, whichever is more.
    """

    expires_s: float = 600.0
    closing: ClosingWish = "copy"
    rehearsal_steps: int = 0
    missing_nodes: MissingNodesPolicy = "roll-back"
    min_nodes: int = 1
    elsewhere: tuple[Place, ...] = ()
    limit_micro_usd: int | None = None
    approvals_needed: int = 1
    carrier: Carrier = "pull"


class Draft(NamedTuple):
    """A plan with its digest, what its bill was computed from, and whether its limit was given."""

    plan: Plan
    inputs: MoveInputs
    limit_given: bool


def plan_move(
    ids: tuple[str, str],
    source: Place,
    target: Place,
    measured: Measured,
    *,
    generation: int,
    now: float,
    terms: Terms,
) -> Draft:
    """A priced plan with its digest.

    Args:
        ids: ``(migration id, run id)``.
        source: Where the run is.
        target: Where it would go.
        measured: Sizes and speeds of this run.
        generation: Of the attempt that would move.
        now: Wall-clock seconds.
        terms: What was agreed on.

    Raises:
        UsageError: A closing was asked for that is not possible; says why.
    """
    closings = _closings(source, target, measured, terms)
    closing = _choose(closings, terms)
    inputs = _inputs(source, target, measured, closing, terms=terms)
    bill = price_move(inputs)
    all_equal = all(are_equal(source, place) for place in (target, *terms.elsewhere))
    plan = Plan(
        migration_id=ids[0],
        run_id=ids[1],
        source=source.placement,
        target=target.placement,
        source_url=source.url,
        target_url=target.url,
        generation=generation,
        bill=bill,
        verdict=verdict(bill)[0],
        created_at=now,
        expires_at=now + terms.expires_s,
        closing=closing.kind,
        closings=closings,
        rehearsal_steps=terms.rehearsal_steps,
        tolerance=0.0 if all_equal else TOLERANCE_ELSEWHERE,
        missing_nodes=terms.missing_nodes,
        min_nodes=terms.min_nodes,
        fallbacks=tuple(Fallback(place.placement, place.url) for place in terms.elsewhere),
        limit_micro_usd=limit_of(bill, inputs)
        if terms.limit_micro_usd is None
        else terms.limit_micro_usd,
        approvals_needed=terms.approvals_needed,
        carrier=terms.carrier,
    )
    return Draft(with_digest(plan), inputs, terms.limit_micro_usd is not None)


def are_equal(source: Place, target: Place) -> bool:
    """Whether both ends compute the same bits: the same machine behind both, as many ranks."""
    ours, theirs = source.placement, target.placement
    if (ours.nodes, ours.ranks_per_node) != (theirs.nodes, theirs.ranks_per_node):
        return False
    hardware = source.offer.hardware
    return ours.instance_type == theirs.instance_type or (
        bool(hardware) and hardware == target.offer.hardware
    )


def reprice(inputs: MoveInputs, *, source_step_s: float, target_step_s: float, num: int) -> Bill:
    """The bill with the speed that a rehearsal measured instead of the catalogue's.

    Args:
        inputs: What the plan's bill was computed from.
        source_step_s: A step at the source meanwhile, > 0 seconds.
        target_step_s: A rehearsed step's median, > 0 seconds.
        num: How many steps were rehearsed; the fewer, the more of a difference may be chance.
    """
    ratio = source_step_s / target_step_s
    told = (
        f"rehearsed: {format_duration(target_step_s)} a step there, "
        f"{format_duration(source_step_s)} here meanwhile"
    )
    noise = _NOISE_OF_ONE_STEP / math.sqrt(max(1, num - 1))
    if abs(math.log(ratio / inputs.throughput_ratio_target)) <= noise:
        ratio, told = (
            inputs.throughput_ratio_target,
            f"{told}, no more apart than {num} steps can tell; {inputs.throughput_reason}",
        )
    return price_move(
        msgspec.structs.replace(inputs, throughput_ratio_target=ratio, throughput_reason=told)
    )


def _closings(
    source: Place, target: Place, measured: Measured, terms: Terms
) -> tuple[Closing, ...]:
    carried = _carried_between(source, target, measured)
    return weigh_closings(
        ClosingInputs(
            state_bytes=measured.state_bytes,
            before_bytes=carried.before,
            within_bytes=carried.within,
            copied_bytes=_copied_bytes(carried, terms),
            step_s=measured.step_s,
            link_bytes_per_s=measured.link_bytes_per_s,
            save_s=measured.save_s,
            copy_handover_s=measured.handover_s,
            replay_handover_s=measured.still_s,
            why_no_replay=_why_no_replay(source, target, terms),
        )
    )


def _copied_bytes(carried: _Carried, terms: Terms) -> int:
    """A rehearsal needs a whole step at the target, whatever the sealed one shares with it."""
    return carried.before + carried.within if terms.rehearsal_steps else carried.num_bytes


def _why_no_replay(source: Place, target: Place, terms: Terms) -> str:
    if not are_equal(source, target):
        return (
            f"steps are not repeated: {source.placement.instance_type} and "
            f"{target.placement.instance_type} may compute other bits"
        )
    return "" if terms.rehearsal_steps else "steps are not repeated without a rehearsal"


def _choose(closings: tuple[Closing, ...], terms: Terms) -> Closing:
    if terms.closing == "auto":
        return closings[0]
    closing = chosen(closings, terms.closing)
    if closing is None:
        reason = closings[0].basis.rpartition("; ")[2]
        raise UsageError(
            f"this move cannot be closed by '{terms.closing}': {reason}; choose another closing"
        )
    return closing


def limit_of(bill: Bill, inputs: MoveInputs) -> int:
    """What a move may cost by its own bill, where nobody gave a limit; 0 when nothing is priced."""
    if not (inputs.target_micro_usd_per_h or bill.one_off_micro_usd):
        return 0
    waiting = round(inputs.target_micro_usd_per_h * _LIMIT_WAIT_S / HOUR_S)
    return _LIMIT_FACTOR * bill.one_off_micro_usd + max(_LIMIT_SLACK_MICRO_USD, waiting)


def handover_s(saga: Saga) -> float | None:
    """What a finished pause took after its bytes were there: proof, commit, restore; seconds."""
    proving = [entry.at for entry in saga.timeline if entry.phase == "verifying"]
    arrived = proving[-1] if proving else None
    if saga.pause_s is None or saga.drained_at is None or arrived is None:
        return None
    return max(0.0, saga.drained_at + saga.pause_s - arrived)


def _inputs(
    source: Place, target: Place, measured: Measured, closing: Closing, *, terms: Terms
) -> MoveInputs:
    stays = source.url == target.url
    carried = _carried_between(source, target, measured)
    ratio, reason = throughput(source.offer, target.offer)
    provision_s = measured.provision_s
    return MoveInputs(
        source_offer=source.offer,
        target_offer=target.offer,
        source_placement=source.placement,
        target_placement=target.placement,
        source_egress=() if stays else source.cloud.egress,
        egress_used_bytes=measured.egress_used_bytes,
        source_get_micro_usd_per_1000=source.cloud.get_micro_usd_per_1000,
        target_put_micro_usd_per_1000=target.cloud.put_micro_usd_per_1000,
        state_bytes=measured.state_bytes,
        transfer_bytes=closing.num_bytes,
        transfer_basis=carried.brief if closing.kind == "copy" else "",
        transfer_reason=carried.reason if closing.kind == "copy" else _replay_reason(closing),
        tokens_per_s_source=measured.tokens_per_s,
        throughput_ratio_target=ratio,
        throughput_reason=reason,
        pause_s=closing.pause_s,
        transfer_s=estimate_transfer_s(carried.before, measured.link_bytes_per_s).seconds,
        provision_s=ASSUMED_PROVISION_S if provision_s is None else provision_s,
        rehearsal_s=_rehearsal_s(measured, terms),
        rehearsal_steps=terms.rehearsal_steps,
        simulated=source.cloud.simulated or target.cloud.simulated,
        as_of=target.offer.as_of,
    )


def _replay_reason(closing: Closing) -> str:
    return (
        f"About {closing.replayed_steps} steps are computed a second time at the target instead "
        "of carrying the last step's bytes; the result is proved equal before the move counts."
    )


def _rehearsal_s(measured: Measured, terms: Terms) -> float:
    if not terms.rehearsal_steps:
        return 0.0
    return ASSUMED_RESTORE_S + terms.rehearsal_steps * measured.step_s


class _Carried(NamedTuple):
    """Bytes in all, those copied while the source trains, those that the pause waits for."""

    num_bytes: int
    before: int
    within: int
    brief: str = ""
    reason: str = ""


def _carried_between(source: Place, target: Place, measured: Measured) -> _Carried:
    return _Carried(0, 0, 0) if source.url == target.url else _carried(measured)


def _carried(measured: Measured) -> _Carried:
    """What a move will carry: as measured, else one copy of the newest checkpoint or the state."""
    found = measured.carried
    if found is not None:
        return _Carried(found.num_bytes, *found)
    size = measured.stored_bytes or measured.state_bytes
    why = measured.not_measured
    told = f"What a move carries was not measured ({why}); one checkpoint is counted."
    return _Carried(size, size, size, reason=told if why else "")


def throughput(source: Offer, target: Offer) -> tuple[float, str]:
    """The target's speed over the source's by catalogue; equal when the catalogue is silent."""
    if source.tokens_per_s and target.tokens_per_s:
        return target.tokens_per_s / source.tokens_per_s, "catalogue throughput of both machines"
    return 1.0, "no measurement on the target; assumed equal"


def price_source(offer: Offer) -> str:
    """Where a price comes from, its date and that it is simulated, each said once."""
    words = [offer.as_of, "simulated" if offer.simulated else ""]
    return ", ".join([offer.source, *(word for word in words if word not in offer.source)])


def move_lines(
    saga: Saga, clouds: Mapping[str, Cloud], *, egress_used_bytes: int = 0
) -> tuple[CostLine, ...]:
    """What a move's bytes and requests have cost, as happened; empty when nothing was carried.

    Args:
        saga: The move.
        clouds: By name.
        egress_used_bytes: Carried out of the source cloud earlier this month.
    """
    source = clouds.get(saga.plan.source.cloud)
    target = clouds.get(saga.target.cloud)
    if source is None or target is None or not saga.bytes_moved:
        return ()
    count = num_requests(saga.bytes_moved)
    requests = count * (source.get_micro_usd_per_1000 + target.put_micro_usd_per_1000)
    label, simulated = saga.plan.migration_id, source.simulated or target.simulated
    way = f"{saga.plan.source.target} to {saga.target.target}"
    return (
        CostLine(
            label=f"{label} egress",
            target=way,
            amount_micro_usd=egress.cost(source.egress, egress_used_bytes, saga.bytes_moved),
            basis=egress.explain(source.egress, egress_used_bytes, saga.bytes_moved),
            simulated=simulated,
        ),
        CostLine(
            label=f"{label} requests",
            target=way,
            amount_micro_usd=round(requests / 1000),
            basis=f"{count} reads and writes for {format_bytes(saga.bytes_moved)}",
            simulated=simulated,
        ),
    )
