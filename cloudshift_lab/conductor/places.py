"""The configured clouds as the conductor uses them: found by name, priced, their stores opened."""

from __future__ import annotations

import difflib
import threading
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Offer, Placement
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.store import Store, open_cloud_store


class Places:
    """Clouds of one state directory; ``clouds.json`` is read anew at each use, it may change.

    Args:
        root: State directory.
        world: Clock of the stores' retries.
    """

    def __init__(self, root: Path, world: World) -> None:
        self._root = root
        self._world = world
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], tuple[Cloud, Store]] = {}

    def clouds(self) -> Clouds:
        """Everything configured now. Raises Corrupt when ``clouds.json`` is damaged."""
        return load_clouds(self._root)

    def store(self, cloud_name: str, url: str) -> Store:
        """A store of a cloud, with its present options; opened anew only when these changed.

        Args:
            cloud_name: Whose options open it.
            url: Where it is: a run stays in its store when the cloud's ``store_url`` changes.

        Raises:
            UsageError: No such cloud (any more).
        """
        cloud = msgspec.structs.replace(self.clouds().find(cloud_name), store_url=url)
        with self._lock:
            held = self._open.get((cloud_name, url))
            if held is None or held[0] != cloud:
                held = (cloud, open_cloud_store(cloud, world=self._world))
                self._open[cloud_name, url] = held
            return held[1]

    def resolve(self, target: str) -> tuple[Cloud, Offer]:
        """Cloud and cheapest offer of ``cloud`` or ``cloud:region``.

        Raises:
            UsageError: No such place; names the nearest one and lists all.
        """
        clouds = self.clouds()
        try:
            return clouds.resolve(target)
        except UsageError as error:
            near = difflib.get_close_matches(target, clouds.targets(), n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"{error.message}{hint}") from error

    def offer_of(self, placement: Placement) -> Offer | None:
        """The present offer of a placement; None when it is not sold any more."""
        for cloud in self.clouds().clouds:
            for offer in cloud.offers:
                if is_sold_as(offer, placement):
                    return offer
        return None


def is_sold_as(offer: Offer, placement: Placement) -> bool:
    """Whether a placement is of that offer, however many nodes of it."""
    return (offer.cloud, offer.region, offer.instance_type, offer.market) == (
        placement.cloud,
        placement.region,
        placement.instance_type,
        placement.market,
    )


def placement_at(offer: Offer, *, ranks_per_node: int, nodes: int = 1) -> Placement:
    """What an offer gives when taken."""
    return Placement(
        cloud=offer.cloud,
        region=offer.region,
        instance_type=offer.instance_type,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        market=offer.market,
    )
