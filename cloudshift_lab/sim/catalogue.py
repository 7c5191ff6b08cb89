"""What the simulated clouds claim to cost: real list prices with their dates, marked simulated."""

from __future__ import annotations

from typing import NamedTuple

from cloudshift_lab.core.money import to_micro_usd
from cloudshift_lab.core.placement import EgressTier, Offer


class ListPrice(NamedTuple):
    """One region's on-demand price of an instance with one L4, 4 vCPU and 16 GiB."""

    region: str
    usd_per_h: float
    source: str


HARDWARE = "1 x L4, 4 vCPU, 16 GiB"
AWS_TYPE, AWS_AS_OF = "g6.xlarge", "2026-07-20"
GCP_TYPE, GCP_AS_OF = "g2-standard-4", "2026-07-30"

AWS_PRICES = (
    ListPrice("us-east-1", 0.8048, f"list price of {AWS_TYPE} as of {AWS_AS_OF}"),
    ListPrice(
        "us-west-2",
        0.8048,
        f"list price of {AWS_TYPE} as of {AWS_AS_OF} in us-east-1, none on file for us-west-2",
    ),
)
GCP_PRICES = (
    ListPrice("us-central1", 0.706832, f"list price of {GCP_TYPE} as of {GCP_AS_OF}"),
    ListPrice("europe-west4", 0.742916, f"list price of {GCP_TYPE} as of {GCP_AS_OF}"),
)

AWS_EGRESS = tuple(
    EgressTier(up_to_gb, to_micro_usd(usd))
    for up_to_gb, usd in ((10_240, 0.09), (51_200, 0.085), (153_600, 0.07), (None, 0.05))
)
GCP_EGRESS = tuple(
    EgressTier(up_to_gb, to_micro_usd(usd))
    for up_to_gb, usd in ((1_024, 0.12), (10_240, 0.11), (None, 0.08))
)
PUT_MICRO_USD_PER_1000 = to_micro_usd(0.005)
GET_MICRO_USD_PER_1000 = to_micro_usd(0.0004)
NOTE = (
    "Simulated on this machine; nothing is billed. Prices are dated list prices; the monthly free "
    "egress (100 GB at AWS, 1 GiB at Google) counts as used up."
)


def offers(
    cloud: str, instance_type: str, as_of: str, prices: tuple[ListPrice, ...]
) -> tuple[Offer, ...]:
    """The offers of one simulated cloud."""
    return tuple(
        Offer(
            cloud=cloud,
            region=price.region,
            instance_type=instance_type,
            price_micro_usd_per_h=to_micro_usd(price.usd_per_h),
            source=f"simulated cloud; {price.source}",
            as_of=as_of,
            simulated=True,
            hardware=HARDWARE,
        )
        for price in prices
    )
