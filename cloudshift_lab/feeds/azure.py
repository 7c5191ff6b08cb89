"""Azure's Retail Prices API: public, without a key, on demand and spot."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.world import World
from cloudshift_lab.feeds.feed import Query
from cloudshift_lab.feeds.machines import AZURE_MACHINES, Machine
from cloudshift_lab.feeds.web import get_json
from cloudshift_lab.market.quotes import Quote

URL = "https://prices.azure.com/api/retail/prices"
SERVICE = "Azure's price list"
_MOST_PAGES = 60


class _Item(msgspec.Struct, rename="camel"):
    retail_price: float
    unit_price: float
    currency_code: str
    arm_region_name: str
    arm_sku_name: str
    sku_name: str
    unit_of_measure: str
    product_name: str = ""
    effective_start_date: str = ""


class _Page(msgspec.Struct):
    items: list[_Item] = msgspec.field(name="Items")
    next_page: str | None = msgspec.field(name="NextPageLink", default=None)


class AzurePrices:
    """Prices of the GPU machines that we know, as Azure lists them now."""

    name = "azure"

    def __init__(self, url: str = URL) -> None:
        self._url = url

    def fetch(self, query: Query, world: World) -> list[Quote]:
        """All regions that were asked for; a page per machine and more where there are many.

        Raises:
            Unavailable: It limits the rate, answers no prices, or not at all.
        """
        if query.clouds and "azure" not in query.clouds:
            return []
        wanted = query.accelerator.lower()
        machines = [each for each in AZURE_MACHINES if wanted in each.accelerator.lower()]
        now = world.now()
        return [
            quote
            for machine in machines
            for item in self._items(machine, query)
            if (quote := _quote(item, machine, now)) is not None and query.wants(quote)
        ]

    def _items(self, machine: Machine, query: Query) -> Iterator[_Item]:
        parts = [
            "serviceName eq 'Virtual Machines'", "priceType eq 'Consumption'",
            f"armSkuName eq '{machine.instance_type}'",
        ]  # fmt: skip
        if query.regions:
            regions = " or ".join(f"armRegionName eq '{region}'" for region in query.regions)
            parts.append(f"({regions})")
        page = get_json(
            self._url, _Page, service=SERVICE, parameters={"$filter": " and ".join(parts)}
        )
        for _ in range(_MOST_PAGES):
            yield from page.items
            if not page.next_page:
                return
            if not page.next_page.startswith(self._url.rsplit("/", 1)[0]):
                raise Unavailable(f"{SERVICE} goes on at another address; narrow the query")
            page = get_json(page.next_page, _Page, service=SERVICE)
        raise Unavailable(f"{SERVICE} has no end; narrow the query")


def _quote(item: _Item, machine: Machine, now: float) -> Quote | None:
    """None for Windows, low priority and anything that is not priced by the hour in dollars."""
    is_ours = item.unit_of_measure == "1 Hour" and "windows" not in item.product_name.lower()
    if not is_ours or "low priority" in item.sku_name.lower() or item.currency_code != "USD":
        return None
    return machine.quote(
        region=item.arm_region_name, micro_usd_per_h=round(item.retail_price * 1e6),
        market="spot" if item.sku_name.lower().endswith("spot") else "on-demand",
        priced_at=now, seen_at=now, source="Azure Retail Prices API", confidence="live",
    )  # fmt: skip
