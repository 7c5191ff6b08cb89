"""What was asked for once answers later, the newer of each; who is silent takes nothing away."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Corrupt, Unavailable
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.feeds.cache import known_prices, path_of, refreshed_prices
from cloudshift_lab.feeds.feed import Query
from cloudshift_lab.market.quotes import Quote

A3 = Query(clouds=("gcp",), accelerator="H100", regions=("us-central1",))


def quote(usd: float, priced_at: float | None = None) -> Quote:
    now = REAL_WORLD.now()
    return Quote(
        cloud="gcp", region="us-central1", instance_type="a3-highgpu-8g", market="spot",
        accelerator="H100", num_accelerators=8, micro_usd_per_h=round(usd * 1e6),
        priced_at=now if priced_at is None else priced_at, seen_at=now, source="test",
        confidence="live",
    )  # fmt: skip


class Says:
    """A feed that answers, or raises."""

    name = "says"

    def __init__(self, *quotes: Quote, error: Exception | None = None) -> None:
        self._quotes, self._error = list(quotes), error

    def fetch(self, query: Query, world: World) -> list[Quote]:
        if self._error is not None:
            raise self._error
        return [each for each in self._quotes if query.wants(each)]


def spot(root: Path) -> Quote:
    found = known_prices(root, A3, REAL_WORLD).quotes
    return next(each for each in found if each.market == "spot")


def test_without_anything_kept_the_package_answers(tmp_path: Path) -> None:
    assert spot(tmp_path).confidence == "snapshot"


def test_what_a_feed_said_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    refreshed_prices(tmp_path, A3, [Says(quote(12.0))], REAL_WORLD)
    assert spot(tmp_path).micro_usd_per_h == 12_000_000
    assert stat.S_IMODE(path_of(tmp_path).stat().st_mode) == 0o600


def test_an_older_price_never_replaces_a_newer_one(tmp_path: Path) -> None:
    refreshed_prices(tmp_path, A3, [Says(quote(12.0))], REAL_WORLD)
    refreshed_prices(tmp_path, A3, [Says(quote(99.0, priced_at=1.7e9))], REAL_WORLD)
    assert spot(tmp_path).micro_usd_per_h == 12_000_000


def test_a_silent_feed_is_named_and_the_others_count(tmp_path: Path) -> None:
    silent = Says(error=Unavailable("it sleeps; try again later"))
    prices = refreshed_prices(tmp_path, A3, [silent, Says(quote(12.0))], REAL_WORLD)
    assert "it sleeps" in prices.silent[0].reason
    assert spot(tmp_path).micro_usd_per_h == 12_000_000


def test_an_empty_catalogue_is_named(tmp_path: Path) -> None:
    prices = refreshed_prices(tmp_path, A3, [Says()], REAL_WORLD)
    assert "no such machine" in prices.silent[0].reason


def test_a_price_that_cannot_be_one_is_not_kept(tmp_path: Path) -> None:
    prices = refreshed_prices(tmp_path, A3, [Says(quote(0.0), quote(-1.0))], REAL_WORLD)
    assert len(prices.rejected) == 2
    assert spot(tmp_path).confidence == "snapshot"


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path_of(tmp_path).write_text("{")
    with pytest.raises(Corrupt, match="delete the file and refresh"):
        known_prices(tmp_path, A3, REAL_WORLD)
