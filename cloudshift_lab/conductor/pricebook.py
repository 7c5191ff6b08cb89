"""Prices as they were seen: written down whenever one changes, so that hindsight has them."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.places import Places
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.placement import Market, Offer, Placement
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World

Sold = tuple[str, str, str, Market]
"""Cloud, region, machine and market: what an offer is an offer of."""


class PriceSeen(msgspec.Struct, frozen=True, tag="price"):
    """An offer's price, per node and hour, from ``at`` on."""

    at: float
    cloud: str
    region: str
    instance_type: str
    market: Market
    micro_usd_per_h: int


_DECODER = msgspec.json.Decoder(PriceSeen)


class PriceBook:
    """All prices that a conductor has seen. Safe to call from any thread.

    Args:
        root: State directory.
        places: Whose offers.
        world: Clock.
    """

    def __init__(self, root: Path, places: Places, world: World) -> None:
        self._places = places
        self._world = world
        self._lock = threading.Lock()
        self._path = root / "prices.jsonl"
        self._journal: Journal | None = None
        self._seen: dict[Sold, list[tuple[float, int]]] = {}

    def look(self) -> None:
        """Write down every price that is not the one seen last.

        Raises:
            Exhausted: The disk is full.
            Corrupt: What was written down is damaged.
        """
        now = self._world.now()
        with self._lock:
            journal = self._loaded()
            for offer in self.offers():
                known = self._seen.get(_sold(offer))
                if known is None or known[-1][1] != offer.price_micro_usd_per_h:
                    seen = PriceSeen(now, *_sold(offer), offer.price_micro_usd_per_h)
                    journal.append(to_json(seen))
                    self._take(seen)

    def offers(self) -> tuple[Offer, ...]:
        """What is sold now."""
        return tuple(offer for cloud in self._places.clouds().clouds for offer in cloud.offers)

    def prices(self, offer: Offer | Placement) -> tuple[tuple[float, int], ...]:
        """``(since, micro-USD per node and hour)``, oldest first; empty: it was never seen.

        Raises:
            Corrupt: What was written down is damaged.
        """
        with self._lock:
            self._loaded()
            return tuple(self._seen.get(_sold(offer), ()))

    def _loaded(self) -> Journal:
        """The journal, read at first use: a damaged one must keep no conductor from starting."""
        if self._journal is None:
            try:
                journal = Journal(self._path)
            except Corrupt as error:
                raise Corrupt(f"{self._path} is damaged; move it away to begin anew") from error
            for seen in [_parse(line) for line in journal.replay()]:
                self._take(seen)
            self._journal = journal
        return self._journal

    def _take(self, seen: PriceSeen) -> None:
        sold = (seen.cloud, seen.region, seen.instance_type, seen.market)
        self._seen.setdefault(sold, []).append((seen.at, seen.micro_usd_per_h))


def _sold(offer: Offer | Placement) -> Sold:
    return offer.cloud, offer.region, offer.instance_type, offer.market


def _parse(line: bytes) -> PriceSeen:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Corrupt(
            f"prices.jsonl holds a price of another version ({error}); move it away to begin anew"
        ) from error
