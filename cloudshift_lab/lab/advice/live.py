"""A live run as a question for advice: what it pays, what it would carry, where it could go."""

from __future__ import annotations

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import Conflict, NotFound
from cloudshift_lab.core.home import home, load_clouds
from cloudshift_lab.core.placement import Cloud, Offer
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.core.world import World
from cloudshift_lab.feeds.snapshot import day
from cloudshift_lab.market.advice import Link, Question
from cloudshift_lab.market.quotes import Quote


def question_of_run(
    name: str, left_h: float | None, deadline_h: float | None, world: World
) -> Question:
    """Ask the conductor about a run and the clouds that are configured.

    Args:
        name: Run id or name.
        left_h: Training left, hours; None: one hour is counted, and the bill says so.
        deadline_h: From now; None: none.
        world: Clock.

    Raises:
        NotFound: There is no such run.
        Conflict: It does not run any more.
        Unavailable: No conductor answers.
    """
    root = home()
    view = _find(Client.connect(root), name)
    if view.state in FINAL_STATES:
        raise Conflict(f"{view.name} is {view.state}; advice is for runs that go on")
    now, clouds = world.now(), load_clouds(root)
    source = clouds.find(view.placement.cloud)
    offers = [(cloud, offer) for cloud in clouds.clouds for offer in cloud.offers]
    return Question(
        here=_here(view, offers, now), now=now, nodes=view.placement.nodes,
        offers=tuple(_quote(offer, now) for _, offer in offers if offer.price_micro_usd_per_h > 0),
        left_s=None if left_h is None else left_h * 3600,
        carry_bytes=view.saves.stored_bytes if view.saves is not None else 0,
        links=_links(source, offers),
        deadline_s=None if deadline_h is None else deadline_h * 3600,
        spent_micro_usd=view.spent_micro_usd,
    )  # fmt: skip


def _find(client: Client, name: str) -> RunView:
    for view in client.runs():
        if name in (view.run_id, view.name):
            return view
    raise NotFound(f"no run called '{name}'; see: cloudshift status")


def _here(view: RunView, offers: list[tuple[Cloud, Offer]], now: float) -> Quote:
    place = view.placement
    for _, offer in offers:
        if (offer.cloud, offer.region, offer.instance_type, offer.market) == (
            place.cloud, place.region, place.instance_type, place.market,
        ):  # fmt: skip
            return _quote(offer, now)
    return Quote(
        cloud=place.cloud, region=place.region, instance_type=place.instance_type,
        market=place.market, micro_usd_per_h=view.price_micro_usd_per_h // place.nodes,
        priced_at=view.created_at, seen_at=now, source=view.price_source,
        confidence="simulated" if view.simulated else "listed",
    )  # fmt: skip


def _links(source: Cloud, offers: list[tuple[Cloud, Offer]]) -> dict[str, Link]:
    """Within one configured cloud nothing is charged that we know of; out of it, its tiers."""
    return {
        f"{offer.cloud}:{offer.region}": Link(source.egress)
        for cloud, offer in offers
        if cloud.name != source.name
    }


def _quote(offer: Offer, now: float) -> Quote:
    """An offer of ``clouds.json``; one without a date is as old as nobody knows: not fresh."""
    count, _, name = offer.hardware.partition("x")
    return Quote(
        cloud=offer.cloud, region=offer.region, instance_type=offer.instance_type,
        market=offer.market, micro_usd_per_h=offer.price_micro_usd_per_h,
        accelerator=name if count.isdigit() else offer.hardware,
        num_accelerators=int(count) if count.isdigit() else 1,
        priced_at=day(offer.as_of) if offer.as_of else now - _UNDATED_S, seen_at=now,
        source=offer.source, confidence="simulated" if offer.simulated else "listed",
    )  # fmt: skip


_UNDATED_S = 30 * 86_400.0
