"""Capacity that is paid for anyway: what using it costs, and what leaving it strands."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.quotes import Quote, date_of


class Commitment(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation or a committed-use discount.

    Args:
        cloud: Provider.
        region: Of it.
        instance_type: What was reserved.
        nodes: How many.
        micro_usd_per_h: Of one node, paid whether it is used or not.
        until: End, unix seconds.
        nodes_used: By others, now.
        alternative_micro_usd_per_h: What another job of yours would pay elsewhere for one node if
            this run took it; 0: it would idle.
    """

    cloud: str
    region: str
    instance_type: str
    nodes: int
    micro_usd_per_h: int
    until: float
    nodes_used: int = 0
    alternative_micro_usd_per_h: int = 0

    @property
    def name(self) -> str:
        return f"{self.nodes} x {self.instance_type} in {self.cloud}:{self.region}"

    def covers(self, quote: Quote) -> bool:
        """Whether a price is for what was reserved."""
        return (quote.cloud, quote.region, quote.instance_type) == (
            self.cloud, self.region, self.instance_type,
        )  # fmt: skip


def check_commitments(commitments: Sequence[Commitment], now: float) -> None:
    """Hold commitments to what is possible.

    Raises:
        UsageError: One has ended, is overused, or says otherwise than another of the same machine.
    """
    prices: dict[tuple[str, str, str], Commitment] = {}
    for each in commitments:
        if each.until <= now:
            raise UsageError(
                f"the commitment for {each.name} ended on {date_of(each.until)}; take it out"
            )
        if each.nodes < 1 or not 0 <= each.nodes_used <= each.nodes:
            raise UsageError(
                f"the commitment for {each.name} has {each.nodes_used} nodes in use; correct it"
            )
        if min(each.micro_usd_per_h, each.alternative_micro_usd_per_h) < 0:
            raise UsageError(f"the commitment for {each.name} has a negative price; correct it")
        key = (each.cloud, each.region, each.instance_type)
        other = prices.setdefault(key, each)
        if other.micro_usd_per_h != each.micro_usd_per_h and other.until == each.until:
            raise UsageError(
                f"two commitments for {each.instance_type} in {each.cloud}:{each.region} end "
                "together at different prices; keep the right one"
            )


def marginal(quote: Quote, nodes: int, commitments: Sequence[Commitment]) -> tuple[int, str]:
    """What one more hour of one node costs when it is reserved already, and why.

    Returns:
        Micro-dollars per node and hour, and the reason; an empty reason: nothing is reserved.
    """
    for each in commitments:
        if each.covers(quote) and each.nodes - each.nodes_used >= nodes:
            if each.alternative_micro_usd_per_h:
                return each.alternative_micro_usd_per_h, (
                    "reserved; another job would take it and now pays elsewhere"
                )
            return 0, "reserved and idle otherwise: it is paid for already"
    return quote.micro_usd_per_h, ""


def stranded(quote: Quote, nodes: int, commitments: Sequence[Commitment]) -> tuple[int, str]:
    """What goes on being paid for nothing when a run leaves a machine; never part of a saving.

    Returns:
        Micro-dollars per hour of all nodes, and the sentence that says so; 0 and nothing without.
    """
    for each in commitments:
        if each.covers(quote) and not each.alternative_micro_usd_per_h:
            usd_h = each.micro_usd_per_h * min(nodes, each.nodes)
            return usd_h, (
                f"leaving strands a commitment of {usd_h / 1e6:,.2f} USD/h until "
                f"{date_of(each.until)}; it is not counted as a saving"
            )
    return 0, ""
