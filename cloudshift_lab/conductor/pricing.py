"""From what was measured to a plan with its bill, and from what happened to its actual cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cloudshift_lab.conductor.forecast import Forecast
from cloudshift_lab.core.money import HOUR_S, format_bytes
from cloudshift_lab.core.placement import Cloud, Offer, Placement
from cloudshift_lab.core.plan import Plan
from cloudshift_lab.core.views import CostLine
from cloudshift_lab.market import egress
from cloudshift_lab.market.bill import MoveInputs, price_move, verdict
from cloudshift_lab.market.estimate import estimate_pause_s, estimate_transfer_s, num_requests
from cloudshift_lab.migration import Saga, with_digest

ASSUMED_PROVISION_S = 20.0
ASSUMED_HANDOVER_S = 4.0


@dataclass(frozen=True)
class Measured:
    """What is known of the run at the moment of planning.

    ``egress_used_bytes`` is what earlier moves carried out of the source cloud this month;
    ``provision_s`` what the newest move needed to get its ranks ready, ``handover_s`` what its
    pause took beside carrying bytes (drain, proof, commit, restore); None before the first.
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
    carried: Forecast | None = None
    not_measured: str = ""


@dataclass(frozen=True)
class Place:
    """One end of a move."""

    cloud: Cloud
    offer: Offer
    placement: Placement
    url: str


def plan_move(
    ids: tuple[str, str],
    source: Place,
    target: Place,
    measured: Measured,
    *,
    generation: int,
    now: float,
    expires_s: float,
) -> Plan:
    """A priced plan with its digest.

    Args:
        ids: ``(migration id, run id)``.
        source: Where the run is.
        target: Where it would go.
        measured: Sizes and speeds of this run.
        generation: Of the attempt that would move.
        now: Wall-clock seconds.
        expires_s: How long it may be approved, seconds.
    """
    bill = price_move(_inputs(source, target, measured))
    return with_digest(
        Plan(
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
            expires_at=now + expires_s,
        )
    )


def handover_s(saga: Saga) -> float:
    """What a finished move's pause took beside carrying its bytes, seconds."""
    carrying_s = estimate_transfer_s(2 * saga.pause_bytes).seconds
    return max(0.0, (saga.pause_s or 0.0) - carrying_s)


def _inputs(source: Place, target: Place, measured: Measured) -> MoveInputs:
    stays = source.url == target.url
    carried = _Carried(0, 0, 0) if stays else _carried(measured)
    ratio, reason = _throughput(source.offer, target.offer)
    provision_s, handover_s = measured.provision_s, measured.handover_s
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
        transfer_bytes=carried.num_bytes,
        transfer_basis=carried.brief,
        transfer_reason=carried.reason,
        tokens_per_s_source=measured.tokens_per_s,
        throughput_ratio_target=ratio,
        throughput_reason=reason,
        pause_s=estimate_pause_s(
            carried.within,
            measured.step_s,
            restore_s=ASSUMED_HANDOVER_S if handover_s is None else handover_s,
        ).seconds,
        transfer_s=estimate_transfer_s(carried.before).seconds,
        provision_s=ASSUMED_PROVISION_S if provision_s is None else provision_s,
        simulated=source.cloud.simulated or target.cloud.simulated,
        as_of=target.offer.as_of,
    )


class _Carried(NamedTuple):
    """Bytes in all, those copied while the source trains, those that the pause waits for."""

    num_bytes: int
    before: int
    within: int
    brief: str = ""
    reason: str = ""


def _carried(measured: Measured) -> _Carried:
    """What a move will carry: as measured, else one copy of the newest checkpoint or the state."""
    found = measured.carried
    if found is not None:
        return _Carried(found.num_bytes, *found)
    size = measured.stored_bytes or measured.state_bytes
    why = measured.not_measured
    told = f"What a move carries was not measured ({why}); one checkpoint is counted."
    return _Carried(size, size, size, reason=told if why else "")


def _throughput(source: Offer, target: Offer) -> tuple[float, str]:
    """The target's speed over the source's by catalogue; equal when the catalogue is silent."""
    if source.tokens_per_s and target.tokens_per_s:
        return target.tokens_per_s / source.tokens_per_s, "catalogue throughput of both machines"
    return 1.0, "no measurement on the target; assumed equal"


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
    target = clouds.get(saga.plan.target.cloud)
    if source is None or target is None or not saga.bytes_moved:
        return ()
    count = num_requests(saga.bytes_moved)
    requests = count * (source.get_micro_usd_per_1000 + target.put_micro_usd_per_1000)
    label, simulated = saga.plan.migration_id, source.simulated or target.simulated
    way = f"{saga.plan.source.target} to {saga.plan.target.target}"
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


def actual_micro_usd(
    saga: Saga, clouds: Mapping[str, Cloud], *, target_micro_usd_per_h: int
) -> int:
    """What the move itself has cost: bytes, requests, and the target while the source was paid.

    Args:
        saga: A finished move.
        clouds: By name.
        target_micro_usd_per_h: Price of all the target's nodes.
    """
    times = {entry.phase: entry.at for entry in saga.timeline}
    begun, over = times.get("provisioning"), saga.timeline[-1].at
    overlap_s = 0.0 if begun is None else max(0.0, over - begun)
    lines = sum(line.amount_micro_usd for line in move_lines(saga, clouds))
    return lines + round(target_micro_usd_per_h * overlap_s / HOUR_S)
