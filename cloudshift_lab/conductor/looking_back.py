"""What a run's other ways are counted from: recorded prices, measured paces, the state's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloudshift_lab.conductor.moves import Move, Surroundings
from cloudshift_lab.conductor.places import is_sold_as
from cloudshift_lab.conductor.pricing import ASSUMED_PROVISION_S
from cloudshift_lab.conductor.spending import clouds_of
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.costs import Ledger
from cloudshift_lab.core.placement import Cloud, Offer, Placement
from cloudshift_lab.market import egress
from cloudshift_lab.market.estimate import num_requests
from cloudshift_lab.market.hindsight import Story, Track
from cloudshift_lab.market.ledger import COPIES, REHEARSES, STARTS, TRAINING
from cloudshift_lab.telemetry.work import Done

MOST_PLACES = 16
_MOVING = "planned moves"


def story_of(
    tender: RunTender, around: Surroundings, ledger: Ledger, done: Sequence[Done]
) -> Story | None:
    """What a run did, so that other ways can be weighed; None before it has trained, or for free.

    Args:
        tender: The run.
        around: Clouds, and prices as they were seen.
        ledger: Of the run.
        done: What each of its attempts did.
    """
    around.prices.look()
    first = tender.record.created.first
    paces = _paces(done)
    trained = [entry for entry in ledger.entries if entry.part == TRAINING]
    work_s = sum(entry.seconds * paces.get(entry.generation, 1.0) for entry in trained)
    own_s = sum(
        entry.seconds
        for entry in ledger.entries
        if entry.seconds and not entry.migration_id and entry.part != _MOVING
    )
    if work_s <= 0 or not first.price_micro_usd_per_h:
        return None
    offers = _offers(tender, around.prices.offers(), first.job.placement)
    return Story(
        tracks=tuple(_track(offer, tender, around, paces) for offer in offers),
        begin=first.at,
        work_s=work_s,
        share=min(1.0, sum(entry.seconds for entry in trained) / own_s),
        carry_micro_usd=_carrying(tender, offers, around),
        starts_s=_starts_s(tender, ledger),
        actual_micro_usd=ledger.total_micro_usd,
    )


def _paces(done: Sequence[Done]) -> dict[int, float]:
    """Measured speed of each attempt over the first one's, by tokens, else by steps."""
    found: dict[int, float] = {}
    speeds = [(each.generation, each.tokens_per_s) for each in done]
    if any(speed is None for _, speed in speeds):
        speeds = [(each.generation, 1 / each.step_s if each.step_s else None) for each in done]
    home = next((speed for _, speed in speeds if speed), None)
    for generation, speed in speeds:
        if speed and home:
            found[generation] = speed / home
    return found


def _offers(
    tender: RunTender, sold: Sequence[Offer], home: Placement
) -> tuple[Offer | Placement, ...]:
    """Where it began, where it has been, and the cheapest other places; free ones are no offers."""
    been = dict.fromkeys(attempt.job.placement for attempt in tender.record.attempts.values())
    places: list[Offer | Placement] = [home]
    for placement in been:
        if not any(_is_same(placement, each) for each in places):
            places.append(placement)
    others = sorted(
        (offer for offer in sold if offer.price_micro_usd_per_h > 0),
        key=lambda offer: offer.price_micro_usd_per_h,
    )
    for offer in others:
        if len(places) < MOST_PLACES and not any(_is_same(offer, each) for each in places):
            places.append(offer)
    return tuple(places)


def _is_same(one: Offer | Placement, other: Offer | Placement) -> bool:
    return (one.cloud, one.region, one.instance_type, one.market) == (
        other.cloud, other.region, other.instance_type, other.market,
    )  # fmt: skip


def _track(
    place: Offer | Placement, tender: RunTender, around: Surroundings, paces: dict[int, float]
) -> Track:
    nodes = tender.record.created.first.job.placement.nodes
    seen = around.prices.prices(place)
    paid = [
        (attempt.started.at, attempt.started.price_micro_usd_per_h)
        for attempt in tender.record.attempts.values()
        if _is_same(attempt.job.placement, place)
    ]
    prices = tuple((at, price * nodes) for at, price in seen) or tuple(sorted(paid))
    pace, basis = _pace(place, tender, around, paces)
    return Track(
        name=f"{place.cloud}:{place.region} {place.instance_type}"
        + ("" if place.market == "on-demand" else f" {place.market}"),
        prices=prices,
        pace=pace,
        basis=basis,
    )


def _pace(
    place: Offer | Placement, tender: RunTender, around: Surroundings, paces: dict[int, float]
) -> tuple[float, str]:
    """How fast a place trains over where the run began: measured, by catalogue, or assumed."""
    measured = [
        paces[generation]
        for generation, attempt in tender.record.attempts.items()
        if generation in paces and _is_same(attempt.job.placement, place)
    ]
    if measured:
        return measured[-1], "measured"
    sold = around.prices.offers()
    home = tender.record.created.first.job.placement
    ours = next((offer for offer in sold if is_sold_as(offer, home)), None)
    theirs = next((offer for offer in sold if _is_same(offer, place)), None)
    if ours and theirs and ours.tokens_per_s and theirs.tokens_per_s:
        return theirs.tokens_per_s / ours.tokens_per_s, "catalogue"
    return 1.0, "assumed equal"


def _carrying(
    tender: RunTender, places: Sequence[Offer | Placement], around: Surroundings
) -> tuple[tuple[int, ...], ...]:
    """[from][to], egress and requests of the state that a move carries."""
    clouds = {
        name: cloud for move in tender.moves.values() for name, cloud in clouds_of(move).items()
    }
    clouds |= {cloud.name: cloud for cloud in around.places.clouds().clouds}
    num_bytes = _state_bytes(tender)
    return tuple(
        tuple(
            _carry(clouds.get(source.cloud), clouds.get(target.cloud), num_bytes)
            for target in places
        )
        for source in places
    )


def _carry(source: Cloud | None, target: Cloud | None, num_bytes: int) -> int:
    if source is None or target is None or source.store_url == target.store_url or not num_bytes:
        return 0
    requests = num_requests(num_bytes) * (
        source.get_micro_usd_per_1000 + target.put_micro_usd_per_1000
    )
    return egress.cost(source.egress, 0, num_bytes) + round(requests / 1000)


def _state_bytes(tender: RunTender) -> int:
    """What a move of this run carried, else what its newest checkpoint holds."""
    carried = [move.saga.bytes_moved for move in _arrived(tender.moves.values())]
    if carried:
        return carried[-1]
    return 0 if tender.status is None else tender.status.stored_bytes


def _starts_s(tender: RunTender, ledger: Ledger) -> float:
    """How long a target was paid before the hand-over, on average; assumed before the first."""
    num = len(_arrived(tender.moves.values()))
    if not num:
        return ASSUMED_PROVISION_S
    parts = {STARTS, COPIES, REHEARSES}
    return sum(entry.seconds for entry in ledger.entries if entry.part in parts) / num


def _arrived(moves: Iterable[Move]) -> list[Move]:
    return [move for move in moves if move.saga.is_committed]
