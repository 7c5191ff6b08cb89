"""Where a run can live and what that costs: clouds, placements, offers."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.errors import UsageError

Market = Literal["on-demand", "spot", "reserved"]


class Placement(msgspec.Struct, frozen=True):
    """Cloud, region, machine kind and count of one attempt."""

    cloud: str
    region: str
    instance_type: str
    nodes: int = 1
    ranks_per_node: int = 2
    market: Market = "on-demand"

    @property
    def target(self) -> str:
        """What a person types after ``--to``: ``gcp-sim:us-central1``."""
        return f"{self.cloud}:{self.region}"

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


class EgressTier(msgspec.Struct, frozen=True):
    """Marginal egress price up to a monthly volume; ``up_to_gb`` None means without end."""

    up_to_gb: float | None
    micro_usd_per_gb: int


class Offer(msgspec.Struct, frozen=True):
    """A priced placement: one node of ``instance_type`` in ``region``.

    ``tokens_per_s`` is a catalogue throughput of one node or None when unknown. ``hardware`` names
    the machine behind ``instance_type``: where it is equal, the same program gives the same bits.
    """

    cloud: str
    region: str
    instance_type: str
    price_micro_usd_per_h: int
    market: Market = "on-demand"
    source: str = "catalogue"
    as_of: str = ""
    simulated: bool = False
    tokens_per_s: float | None = None
    hardware: str = ""


NoticeDialect = Literal["none", "aws", "gcp", "azure"]


class Notices(msgspec.Struct, frozen=True):
    """How a machine of a cloud hears that it will be taken away.

    ``dialect``: whose metadata service is asked; ``none``: nobody's. ``url``: where that is; empty:
    as the provider's own tools find it. ``{machine}`` in it becomes the machine's name, for an
    emulator that plays several. ``every_s``: seconds between two looks, None: as the provider
    advises. ``lead_s``: seconds from the word to the end where the service names no time, None: the
    provider's. ``signals``: seconds that are left after a signal, ``{"SIGTERM": 30}`` under
    Kubernetes or Slurm; a signal that is not named keeps its own meaning.
    """

    dialect: NoticeDialect = "none"
    url: str = ""
    every_s: float | None = None
    lead_s: float | None = None
    signals: dict[str, float] = {}


class Cloud(msgspec.Struct, frozen=True):
    """A place that can run ranks and keep objects.

    ``store_options`` may hold credentials: it stays in the mode-0600 configuration file and in
    the memory of processes that read that file, and is never put into a spec, log or telemetry.
    ``public_store_options``: how the store is reached from outside of the cloud (the conductor,
    the agents of other clouds) where that differs, None otherwise. ``log_url``: where the runs'
    logs are kept when it is not the store itself. ``notices``: how its machines hear of their end,
    None: not at all.
    """

    name: str
    title: str
    store_url: str
    store_options: dict[str, msgspec.Raw] | None = None
    public_store_options: dict[str, msgspec.Raw] | None = None
    log_url: str = ""
    offers: tuple[Offer, ...] = ()
    egress: tuple[EgressTier, ...] = ()
    put_micro_usd_per_1000: int = 0
    get_micro_usd_per_1000: int = 0
    simulated: bool = False
    note: str = ""
    notices: Notices | None = None

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(offer.region for offer in self.offers))


class Clouds(msgspec.Struct, frozen=True):
    """Everything that is configured on this machine."""

    clouds: tuple[Cloud, ...]

    def find(self, name: str) -> Cloud:
        """The cloud called ``name``.

        Raises:
            UsageError: No such cloud; lists the ones that exist.
        """
        for cloud in self.clouds:
            if cloud.name == name:
                return cloud
        raise UsageError(f"no cloud called '{name}'; choose one of: {', '.join(self.targets())}")

    def targets(self) -> tuple[str, ...]:
        """All ``cloud:region`` pairs that can be named after ``--on`` or ``--to``."""
        return tuple(f"{cloud.name}:{region}" for cloud in self.clouds for region in cloud.regions)

    def resolve(self, target: str) -> tuple[Cloud, Offer]:
        """Parse ``cloud`` or ``cloud:region`` and take the cheapest offer there.

        Raises:
            UsageError: Unknown cloud or region; lists the ones that exist.
        """
        name, _, region = target.partition(":")
        cloud = self.find(name)
        offers = [offer for offer in cloud.offers if region in ("", offer.region)]
        if not offers:
            raise UsageError(
                f"'{name}' has no region '{region}'; choose one of: {', '.join(self.targets())}"
            )
        return cloud, min(offers, key=lambda offer: offer.price_micro_usd_per_h)
