"""``cloudshift market prices``: what machines cost where, how old that is, and who said so."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.home import home
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.feeds.aws import AwsSpotPrices
from cloudshift_lab.feeds.azure import AzurePrices
from cloudshift_lab.feeds.cache import Prices, known_prices, refreshed_prices
from cloudshift_lab.feeds.feed import PriceFeed, Query
from cloudshift_lab.feeds.gpuhunt_feed import GpuhuntPrices
from cloudshift_lab.feeds.importers import read_prices
from cloudshift_lab.market.quotes import Quote, badge, may_move_alone

_FEEDS: dict[str, Callable[[], PriceFeed]] = {
    "gpuhunt": GpuhuntPrices, "azure": AzurePrices, "aws": AwsSpotPrices,
}  # fmt: skip


class Imported:
    """A price list in a file, as a feed."""

    def __init__(self, file: str) -> None:
        cloud, _, path = file.partition("=")
        if not path:
            raise UsageError(
                f"'{file}' does not say whose prices it has; write --import gcp={file}"
            )
        self._cloud, self._path = cloud, Path(path)
        self.name = self._path.name

    def fetch(self, query: Query, world: World) -> list[Quote]:
        """Its prices that were asked for."""
        found = read_prices(self._path, cloud=self._cloud, now=world.now())
        return [quote for quote in found if query.wants(quote)]


def main(argv: list[str]) -> int:
    """Show prices. Returns 1 when there is nothing to show or nobody answered."""
    options = _parse(argv)
    query = Query(
        clouds=tuple(options.cloud or ()), accelerator=options.accelerator or "",
        regions=tuple(options.region or ()),
    )  # fmt: skip
    try:
        feeds = _feeds(options)
        for feed in feeds:
            print(f"  asking {feed.name}", file=sys.stderr, flush=True)
        prices = (
            refreshed_prices(home(), query, feeds, REAL_WORLD)
            if feeds
            else known_prices(home(), query, REAL_WORLD)
        )
        if options.json is not None:
            Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(prices)) + b"\n")
    except (CloudshiftError, OSError) as error:
        print(f"market prices failed: {getattr(error, 'message', error)}", file=sys.stderr)
        return 1
    print(prices_text(prices, options.limit, REAL_WORLD.now()))
    nobody = bool(feeds) and len(prices.silent) == len(feeds)
    return 1 if nobody or not prices.quotes else 0


def _feeds(options: argparse.Namespace) -> list[PriceFeed]:
    files: list[PriceFeed] = [Imported(file) for file in options.file or ()]
    names = (options.feed or _FEEDS) if options.refresh else ()
    return [*files, *(_FEEDS[name]() for name in names)]


def prices_text(prices: Prices, limit: int, now: float) -> str:
    """The table, and below it what was left out and who did not answer."""
    shown = prices.quotes[:limit] if limit else prices.quotes
    lines = [_LINE.format("USD/h", "each", "accelerators", "market", "place", "machine", "known")]
    lines += [_line(quote, now) for quote in shown]
    if not prices.quotes:
        lines = ["no price is known for that; ask for less, or refresh: market prices --refresh"]
    elif len(shown) < len(prices.quotes):
        lines.append(f"{len(prices.quotes) - len(shown)} more; --limit 0 shows all")
    if prices.quotes and not any(may_move_alone(quote, now) for quote in prices.quotes):
        lines.append(
            "No run is moved by itself on these prices: they are older than a day or were never "
            "read from a provider. market prices --refresh asks again."
        )
    lines += [f"left out: {each.what}: {each.reason}" for each in prices.rejected[:_MOST_BAD]]
    if len(prices.rejected) > _MOST_BAD:
        lines.append(f"left out: {len(prices.rejected) - _MOST_BAD} more like these")
    lines += [f"no answer: {each.what}: {each.reason}" for each in prices.silent]
    return "\n".join(lines)


_LINE = "{:>9}  {:>8}  {:14} {:10} {:26} {:26} {}"
_MOST_BAD = 5


def _line(quote: Quote, now: float) -> str:
    usd = quote.micro_usd_per_h / 1e6
    each = f"{usd / quote.num_accelerators:.3f}" if quote.num_accelerators else ""
    name = f"{quote.num_accelerators} x {quote.accelerator}" if quote.accelerator else "none"
    known = f"{badge(quote, now)} ({quote.source})"
    return _LINE.format(
        f"{usd:.3f}", each, name, quote.market, quote.place, quote.instance_type, known
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cloudshift market prices", description=main.__doc__)
    parser.add_argument("--refresh", action="store_true", help="ask the providers now")
    parser.add_argument("--feed", action="append", choices=tuple(_FEEDS), help="only this one")
    parser.add_argument(
        "--import", action="append", dest="file", metavar="CLOUD=FILE",
        help="a gpuhunt or SkyPilot catalogue, or an AWS spot price history",
    )  # fmt: skip
    parser.add_argument("--accelerator", help="part of its name: H100")
    parser.add_argument("--cloud", action="append", help="only this provider; may be repeated")
    parser.add_argument("--region", action="append", help="only this region; may be repeated")
    parser.add_argument("--limit", type=int, default=20, help="rows shown; 0: all")
    parser.add_argument("--json", help="file for everything")
    return parser.parse_args(argv)
