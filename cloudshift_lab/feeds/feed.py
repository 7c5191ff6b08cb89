"""What every source of prices does."""

from __future__ import annotations

from typing import Protocol

import msgspec

from cloudshift_lab.core.world import World
from cloudshift_lab.market.quotes import Quote


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which prices are wanted; empty fields mean all.

    Args:
        clouds: Providers.
        accelerator: Part of its name, in any case: ``h100``.
        regions: Of the providers.
    """

    clouds: tuple[str, ...] = ()
    accelerator: str = ""
    regions: tuple[str, ...] = ()

    def wants(self, quote: Quote) -> bool:
        """Whether a price belongs to the answer."""
        if self.clouds and quote.cloud not in self.clouds:
            return False
        if self.regions and quote.region not in self.regions:
            return False
        return self.accelerator.lower() in quote.accelerator.lower()


class PriceFeed(Protocol):
    """A source of prices.

    ``fetch`` raises Unavailable (try again later, with when), Denied (credentials) or UsageError
    (something to install or to set), always naming the source.
    """

    @property
    def name(self) -> str:
        """What it is called on a command line."""
        ...

    def fetch(self, query: Query, world: World) -> list[Quote]:
        """Prices as they are now; it may take seconds."""
        ...
