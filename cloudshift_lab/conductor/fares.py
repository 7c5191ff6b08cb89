"""What a move costs at each of the places where it may end, by the offers of its plan."""

from __future__ import annotations

import msgspec

from cloudshift_lab.conductor.places import Places, is_sold_as
from cloudshift_lab.conductor.pricing import throughput
from cloudshift_lab.conductor.records import MoveOpened
from cloudshift_lab.core.placement import Offer
from cloudshift_lab.core.plan import Fallback, Plan
from cloudshift_lab.market.bill import MoveInputs
from cloudshift_lab.market.estimate import estimate_transfer_s


class Fares:
    """Prices of one move's target and of its fallbacks.

    Args:
        opened: The move, with the offers that its plan was made of.
        places: Clouds; asked for what journals of older versions do not say.
    """

    def __init__(self, opened: MoveOpened, places: Places) -> None:
        self._opened = opened
        self._places = places

    def offer(self, place: Fallback) -> Offer | None:
        """What a place is sold as; None when that is not known."""
        inputs = self._opened.inputs
        known = (() if inputs is None else (inputs.target_offer,)) + self._opened.elsewhere
        sold = (offer for offer in known if is_sold_as(offer, place.placement))
        return next(sold, None) or self._places.offer_of(place.placement)

    def price(self, place: Fallback) -> int | None:
        """Micro-dollars per hour of all the nodes of a place; None when that is not known."""
        if place.placement == self._opened.target_job.placement:
            return self._opened.price_micro_usd_per_h
        offer = self.offer(place)
        return None if offer is None else offer.price_micro_usd_per_h * place.placement.nodes

    def inputs_at(self, plan: Plan, place: Fallback) -> MoveInputs | None:
        """What the plan's bill would be computed from at a place; None when that is not known."""
        inputs, offer = self._opened.inputs, self.offer(place)
        if inputs is None or offer is None:
            return None
        if place.placement == plan.target:
            return inputs
        clouds = {cloud.name: cloud for cloud in self._places.clouds().clouds}
        source, target = clouds.get(plan.source.cloud), clouds.get(place.placement.cloud)
        if source is None or target is None:
            return None
        stays = place.url == plan.source_url
        num_bytes = 0 if stays else inputs.transfer_bytes or inputs.state_bytes
        transfer_s = inputs.transfer_s or estimate_transfer_s(num_bytes, None).seconds
        ratio, reason = throughput(inputs.source_offer, offer)
        return msgspec.structs.replace(
            inputs,
            target_offer=offer,
            target_placement=place.placement,
            source_egress=() if stays else source.egress,
            target_put_micro_usd_per_1000=target.put_micro_usd_per_1000,
            transfer_bytes=num_bytes,
            transfer_s=0.0 if stays else transfer_s,
            throughput_ratio_target=ratio,
            throughput_reason=reason,
            simulated=source.simulated or target.simulated,
            as_of=offer.as_of,
        )


def ends_of(plan: Plan, used: int, moved_to: Fallback | None) -> tuple[Fallback, ...]:
    """Where a move may still end, its present target first.

    Args:
        plan: With its fallbacks.
        used: How many of these were tried.
        moved_to: The present target, None while it is the plan's own.
    """
    present = moved_to or Fallback(placement=plan.target, url=plan.target_url)
    return (present, *plan.fallbacks[used:])
