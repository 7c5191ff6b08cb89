"""Prices that were asked for before: they answer without a network, with their own dates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import Corrupt, Denied, Unavailable, UsageError
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.world import World
from cloudshift_lab.feeds.feed import PriceFeed, Query
from cloudshift_lab.feeds.snapshot import Snapshot
from cloudshift_lab.market.quotes import Quote, Rejected, checked

_NO_ANSWER = (Unavailable, Denied, UsageError)


class Book(msgspec.Struct, frozen=True):
    """The file: every price that was ever kept, the newest of each machine and place."""

    quotes: tuple[Quote, ...] = ()


class Prices(msgspec.Struct, frozen=True):
    """An answer: what can be used, cheapest first; what cannot; and who did not answer."""

    quotes: list[Quote]
    rejected: list[Rejected]
    silent: list[Rejected]


def path_of(root: Path) -> Path:
    """Where the prices of one state directory are kept."""
    return root / "prices.json"


def known_prices(root: Path, query: Query, world: World) -> Prices:
    """Kept prices and those of the package, the newer of each; asks nobody.

    Raises:
        Corrupt: The kept file cannot be read.
    """
    found = newest([*Snapshot().fetch(query, world), *_read(root)])
    good, bad = checked((each for each in found if query.wants(each)), world.now())
    return Prices(good, bad, [])


def refreshed_prices(root: Path, query: Query, feeds: Iterable[PriceFeed], world: World) -> Prices:
    """Ask every feed, keep what is good, and answer from everything that is known then.

    A feed that does not answer is named and takes nothing away from the others; it is for the
    caller to say that nobody answered at all.

    Raises:
        Corrupt: The kept file cannot be read.
    """
    fresh, rejected, silent = list[Quote](), list[Rejected](), list[Rejected]()
    for feed in feeds:
        try:
            good, bad = checked(feed.fetch(query, world), world.now())
        except _NO_ANSWER as error:
            silent.append(Rejected(feed.name, error.message))
            continue
        fresh += good
        rejected += bad
        if not good and not bad:
            silent.append(Rejected(feed.name, "it has no such machine"))
    if fresh:
        kept = Book(tuple(newest([*_read(root), *fresh])))
        write_private(path_of(root), msgspec.json.encode(kept))
    known = known_prices(root, query, world)
    return Prices(known.quotes, [*rejected, *known.rejected], silent)


def newest(quotes: Iterable[Quote]) -> list[Quote]:
    """One price of each machine, place and market: the one that was true last."""
    found: dict[tuple[str, ...], Quote] = {}
    for quote in quotes:
        key = (quote.cloud, quote.region, quote.zone, quote.instance_type, quote.market)
        if key not in found or found[key].priced_at <= quote.priced_at:
            found[key] = quote
    return list(found.values())


def _read(root: Path) -> tuple[Quote, ...]:
    path = path_of(root)
    if not path.is_file():
        return ()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Book).quotes
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"the kept prices in {path} cannot be read; delete the file and refresh"
        ) from error
