"""The lines of a bill: each an amount, its arithmetic in words, and where the price comes from."""

from __future__ import annotations

from cloudshift_lab.core.money import HOUR_S, format_duration, format_usd
from cloudshift_lab.core.placement import Offer, Placement
from cloudshift_lab.core.plan import BillItem, BillKind
from cloudshift_lab.market import egress
from cloudshift_lab.market.estimate import num_requests
from cloudshift_lab.market.inputs import MoveInputs

NOT_COUNTED_SPOT = "spot machine"


def bill_items(inputs: MoveInputs) -> tuple[BillItem, ...]:
    """All lines in the order they are shown: paid once, then compute, then notes."""
    return (
        egress_item(inputs),
        requests_item(inputs),
        overlap_item(inputs),
        transfer_item(inputs),
        *rehearsal_items(inputs),
        pause_item(inputs),
        compute_item(inputs),
        *note_items(inputs),
    )


def egress_item(inputs: MoveInputs) -> BillItem:
    """Carrying the missing bytes out of the source's cloud."""
    tiers, used, num_bytes = inputs.source_egress, inputs.egress_used_bytes, inputs.transfer_bytes
    cloud = inputs.source_placement.cloud
    return _item(
        inputs,
        "egress",
        f"egress from {cloud}",
        egress.cost(tiers, used, num_bytes),
        basis=egress.explain(tiers, used, num_bytes),
        source=f"egress prices of {cloud}",
    )


def requests_item(inputs: MoveInputs) -> BillItem:
    """Reading every object at the source, writing it at the target."""
    count = inputs.num_objects
    num = num_requests(inputs.transfer_bytes) if count is None else count
    get, put = inputs.source_get_micro_usd_per_1000, inputs.target_put_micro_usd_per_1000
    return _item(
        inputs,
        "requests",
        "object store requests",
        round(num * (get + put) / 1000),
        basis=f"{num:,} reads x {format_usd(get)}/1,000 + {num:,} writes x {format_usd(put)}/1,000",
        source=f"request prices of {inputs.source_placement.cloud} "
        f"and {inputs.target_placement.cloud}",
    )


def overlap_item(inputs: MoveInputs) -> BillItem:
    """The target is paid while it starts; the source still trains."""
    return _target_time_item(
        inputs, "overlap", "both run while the target starts", inputs.provision_s
    )


def transfer_item(inputs: MoveInputs) -> BillItem:
    """The target is paid while state arrives; the source still trains."""
    return _target_time_item(
        inputs, "transfer", "both run while the state is copied", inputs.transfer_s
    )


def rehearsal_items(inputs: MoveInputs) -> tuple[BillItem, ...]:
    """The target is paid while it proves itself on a few steps; the source still trains."""
    if not inputs.rehearsal_s:
        return ()
    label = f"both run while the target rehearses {inputs.rehearsal_steps} steps"
    return (_target_time_item(inputs, "overlap", label, inputs.rehearsal_s),)


def pause_item(inputs: MoveInputs) -> BillItem:
    """Both sides are paid and neither trains."""
    price = inputs.source_micro_usd_per_h + inputs.target_micro_usd_per_h
    sides = f"({format_usd(inputs.source_micro_usd_per_h)} source + "
    sides += f"{format_usd(inputs.target_micro_usd_per_h)} target)/h"
    return _item(
        inputs,
        "pause",
        "nobody trains during the hand-over",
        for_duration(price, inputs.pause_s),
        basis=f"{format_duration(inputs.pause_s)} x {sides}",
        source=_both_sources(inputs),
    )


def compute_item(inputs: MoveInputs) -> BillItem:
    """The training left, at the target's price instead of the source's; negative is a saving."""
    ratio = inputs.throughput_ratio_target
    pace = "" if ratio == 1 else f" / {ratio:.2f} speed"
    horizon = format_duration(inputs.horizon_s)
    target = _node_price(inputs.target_placement, inputs.target_offer)
    source = (
        "$0.00 saved (reserved)"
        if inputs.is_source_reserved
        else _node_price(inputs.source_placement, inputs.source_offer)
    )
    return _item(
        inputs,
        "compute",
        f"training for {horizon} there instead of here",
        -for_duration(inputs.saving_micro_usd_per_h, inputs.horizon_s),
        basis=f"{horizon} x ({target}{pace} - {source})",
        source=_both_sources(inputs),
    )


def note_items(inputs: MoveInputs) -> tuple[BillItem, ...]:
    """What a reader should know and what costs nothing by itself."""
    notes = [("throughput of the target", _throughput_words(inputs))]
    if inputs.transfer_basis:
        notes.append(("bytes to carry", inputs.transfer_basis))
    if inputs.remaining_s is None:
        notes.append(("training left", "unknown, so one hour is counted"))
    if inputs.is_source_reserved:
        price = _node_price(inputs.source_placement, inputs.source_offer)
        notes.append(("reserved capacity left idle", f"{price} goes on, not counted as a saving"))
    if inputs.target_offer.market == "spot":
        notes.append((NOT_COUNTED_SPOT, "it can be taken away; the cost of that is not counted"))
    if not inputs.source_egress and inputs.transfer_bytes:
        notes.append(("egress", f"no price configured for {inputs.source_placement.cloud}"))
    return tuple(
        _item(inputs, "note", label, 0, basis=basis, source="information") for label, basis in notes
    )


def for_duration(micro_usd_per_h: int, seconds: float) -> int:
    """An hourly price over a duration, to the nearest micro-dollar."""
    return round(micro_usd_per_h * seconds / HOUR_S)


def _target_time_item(inputs: MoveInputs, kind: BillKind, label: str, seconds: float) -> BillItem:
    price = _node_price(inputs.target_placement, inputs.target_offer)
    return _item(
        inputs,
        kind,
        label,
        for_duration(inputs.target_micro_usd_per_h, seconds),
        basis=f"{format_duration(seconds)} x {price}",
        source=inputs.target_offer.source,
    )


def _item(
    inputs: MoveInputs, kind: BillKind, label: str, amount: int, *, basis: str, source: str
) -> BillItem:
    return BillItem(
        label=label,
        amount_micro_usd=amount,
        basis=basis,
        source=source,
        kind=kind,
        as_of=_as_of(inputs, kind),
        simulated=inputs.is_simulated,
    )


def _as_of(inputs: MoveInputs, kind: BillKind) -> str:
    """The older of the dates a line rests on."""
    if kind in ("egress", "requests", "note"):
        return inputs.as_of
    dates = {inputs.target_offer.as_of}
    if kind in ("pause", "compute"):
        dates.add(inputs.source_offer.as_of)
    return min((date for date in dates if date), default=inputs.as_of)


def _node_price(placement: Placement, offer: Offer) -> str:
    price = f"{format_usd(offer.price_micro_usd_per_h)}/h"
    return price if placement.nodes == 1 else f"{placement.nodes} nodes x {price}"


def _both_sources(inputs: MoveInputs) -> str:
    sources = dict.fromkeys((inputs.source_offer.source, inputs.target_offer.source))
    return " and ".join(sources)


def _throughput_words(inputs: MoveInputs) -> str:
    ratio = f"{inputs.throughput_ratio_target:.2f} x the source ({inputs.throughput_reason})"
    if inputs.tokens_per_s_source is None:
        return ratio
    return f"{ratio}; measured here: {inputs.tokens_per_s_source:,.0f} tokens/s"
