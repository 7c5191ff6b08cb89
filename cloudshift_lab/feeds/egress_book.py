"""What providers charge for carrying bytes away: dated facts, by source and by where they go.

Internet prices are marginal by monthly volume; between regions of one provider they are flat.
Read from the providers' price lists as of 2026-08 (AWS pairs: skynomad-artifact's table of S3
transfer prices; GCP: google-cloud-pricing-cost-calculator; tiers of AWS and Azure: SkyPilot
0.14.1's table of rates). 1 TB of these lists is 1,024 GB of 2^30 bytes.
"""

from __future__ import annotations

from typing import Literal

from cloudshift_lab.core.placement import EgressTier

AS_OF = "2026-08"
_TB = 1024.0
_FREE = ("lambda", "nebius", "runpod")
_Steps = tuple[tuple[float | None, float], ...]
_INTERNET: dict[str, _Steps] = {
    "aws": ((10, 0.09), (50, 0.085), (150, 0.07), (None, 0.05)),
    "azure": ((10, 0.0875), (50, 0.083), (150, 0.07), (None, 0.05)),
    "gcp": ((1, 0.12), (10, 0.11), (None, 0.08)),
}
_AWS_REGIONS = {
    "af-south-1": 0.147, "ap-east-1": 0.09, "ap-northeast-1": 0.09, "ap-northeast-2": 0.08,
    "ap-northeast-3": 0.09, "ap-south-1": 0.086, "ap-southeast-1": 0.09, "ap-southeast-2": 0.098,
    "ap-southeast-3": 0.1, "ap-southeast-4": 0.1, "il-central-1": 0.08, "me-central-1": 0.085,
    "me-south-1": 0.1105, "sa-east-1": 0.138,
}  # fmt: skip
_AWS_OTHERS, _AWS_NEIGHBOURS, _GCP_ASSUMED = 0.02, 0.01, 0.02
_OHIO_VIRGINIA = frozenset({"us-east-1", "us-east-2"})
Known = Literal["listed", "assumed", "unknown"]


def egress_tiers(
    source: tuple[str, str], target: tuple[str, str]
) -> tuple[tuple[EgressTier, ...], Known]:
    """What leaving ``source`` for ``target`` costs, and how that is known.

    Args:
        source: Cloud and region.
        target: Cloud and region.

    Returns:
        Tiers as ``market.egress`` takes them, empty when nothing is known: then a bill says that
        no price is configured, and never counts it as free.
    """
    if source == target:
        return _flat(0.0), "listed"
    cloud, region = source
    if cloud == target[0]:
        return _inside(cloud, region, target[1])
    if cloud in _FREE:
        return _flat(0.0), "listed"
    steps = _INTERNET.get(cloud)
    return (_tiers(steps), "listed") if steps else ((), "unknown")


def _inside(cloud: str, region: str, other: str) -> tuple[tuple[EgressTier, ...], Known]:
    if cloud == "aws":
        if {region, other} == _OHIO_VIRGINIA:
            return _flat(_AWS_NEIGHBOURS), "listed"
        return _flat(_AWS_REGIONS.get(region, _AWS_OTHERS)), "listed"
    if cloud == "gcp":
        return _flat(_GCP_ASSUMED), "assumed"
    return (_flat(0.0), "listed") if cloud in _FREE else ((), "unknown")


def _tiers(steps: _Steps) -> tuple[EgressTier, ...]:
    return tuple(
        EgressTier(None if up_to is None else up_to * _TB, round(usd * 1e6)) for up_to, usd in steps
    )


def _flat(usd_per_gb: float) -> tuple[EgressTier, ...]:
    return (EgressTier(None, round(usd_per_gb * 1e6)),)
