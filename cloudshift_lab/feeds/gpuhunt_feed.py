"""Prices of many clouds through gpuhunt's published catalogues."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from cloudshift_lab.core.errors import Unavailable, UsageError
from cloudshift_lab.core.world import World
from cloudshift_lab.feeds.feed import Query
from cloudshift_lab.feeds.snapshot import day
from cloudshift_lab.feeds.web import TIMEOUT_S
from cloudshift_lab.market.quotes import FRESH_S, Quote

SERVICE = "gpuhunt's catalogue"
_DATED = re.compile(r"(20\d\d)-?(\d\d)-?(\d\d)")


class GpuhuntPrices:
    """Each provider's newest catalogue, dated by its version.

    One without a date counts as a day old, so that no run is moved by itself because of it.
    """

    name = "gpuhunt"

    def fetch(self, query: Query, world: World) -> list[Quote]:
        """All providers that were asked for and that gpuhunt publishes a catalogue of.

        Raises:
            UsageError: gpuhunt is not installed.
            Unavailable: No catalogue can be reached or read.
        """
        try:
            gpuhunt = import_module("gpuhunt")
        except ImportError as error:
            raise UsageError(
                "gpuhunt is not installed; run: pip install 'cloudshift-lab[prices]'"
            ) from error
        catalog = gpuhunt.Catalog(auto_reload=False)
        try:
            with _quietly():
                catalog.load()
        except (gpuhunt.GPUHuntError, OSError, ValueError) as error:
            raise Unavailable(f"{SERVICE} cannot be read ({error}); try again later") from error
        return list(_quotes(catalog.catalog, query, world.now()))


def _quotes(catalogs: dict[str, Any], query: Query, now: float) -> Iterator[Quote]:
    for provider, catalog in catalogs.items():
        if query.clouds and provider not in query.clouds:
            continue
        found = _DATED.search(catalog.version)
        priced_at = day("-".join(found.groups())) if found else now - FRESH_S
        for item in catalog.items:
            if item.gpu_name:
                quote = _quote(item, provider, priced_at, now)
                if query.wants(quote):
                    yield quote


def _quote(item: Any, provider: str, priced_at: float, now: float) -> Quote:
    return Quote(
        cloud=provider, region=item.location, instance_type=item.instance_name,
        accelerator=item.gpu_name, num_accelerators=item.gpu_count or 0,
        accelerator_memory_gb=float(item.gpu_memory or 0), vcpus=item.cpu or 0,
        memory_gb=float(item.memory or 0), market="spot" if item.spot else "on-demand",
        micro_usd_per_h=round(item.price * 1e6), priced_at=priced_at, seen_at=now,
        source="gpuhunt catalogue", confidence="listed",
    )  # fmt: skip


@contextmanager
def _quietly() -> Iterator[None]:
    """gpuhunt waits for ever and logs a traceback per provider; here it does neither."""
    logger, before = logging.getLogger("gpuhunt"), socket.getdefaulttimeout()
    was_disabled, logger.disabled = logger.disabled, True
    children = [logging.getLogger(name) for name in _loggers()]
    states = [child.disabled for child in children]
    for child in children:
        child.disabled = True
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        logger.disabled = was_disabled
        for child, state in zip(children, states, strict=True):
            child.disabled = state


def _loggers() -> list[str]:
    return [name for name in logging.root.manager.loggerDict if name.startswith("gpuhunt.")]
