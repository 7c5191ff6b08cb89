"""AWS's spot price history: per availability zone, with the account's own credentials."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from cloudshift_lab.core.errors import Denied, Unavailable, UsageError
from cloudshift_lab.core.world import World
from cloudshift_lab.feeds.feed import Query
from cloudshift_lab.feeds.machines import AWS_MACHINES, MACHINES
from cloudshift_lab.market.quotes import Quote

SERVICE = "AWS's spot price history"
SOURCE = "AWS describe_spot_price_history"
DEFAULT_REGIONS = ("us-east-1", "us-east-2", "us-west-2", "eu-west-1", "eu-central-1")
_BACK_S = 3600.0


class AwsSpotPrices:
    """The newest spot price of every zone; ``endpoint``: another address, for a test server."""

    name = "aws"

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def fetch(self, query: Query, world: World) -> list[Quote]:
        """Spot prices of the last hour in the regions that were asked for.

        Raises:
            UsageError: boto3 is not installed.
            Denied: There are no credentials, or they may not ask.
            Unavailable: It limits the rate or does not answer.
        """
        if query.clouds and "aws" not in query.clouds:
            return []
        wanted = query.accelerator.lower()
        types = [m.instance_type for m in AWS_MACHINES if wanted in m.accelerator.lower()]
        if not types:
            return []
        now, newest = world.now(), dict[tuple[str, str], Quote]()
        for region in query.regions or DEFAULT_REGIONS:
            for entry in self._entries(region, types, now):
                quote = spot_quote(entry, region, now)
                if quote is None:
                    continue
                key = (quote.zone, quote.instance_type)
                if key not in newest or newest[key].priced_at < quote.priced_at:
                    newest[key] = quote
        return list(newest.values())

    def _entries(self, region: str, types: list[str], now: float) -> Iterator[dict[str, Any]]:
        try:
            boto3, errors = import_module("boto3"), import_module("botocore.exceptions")
        except ImportError as error:
            raise UsageError(
                f"{SERVICE} needs boto3; run: pip install 'cloudshift-lab[prices]'"
            ) from error
        try:
            client = boto3.client("ec2", region_name=region, endpoint_url=self._endpoint)
            pages = client.get_paginator("describe_spot_price_history").paginate(
                InstanceTypes=types, ProductDescriptions=["Linux/UNIX"], StartTime=now - _BACK_S
            )
            for page in pages:
                yield from page["SpotPriceHistory"]
        except errors.NoCredentialsError as error:
            raise Denied(f"{SERVICE} needs AWS credentials; set AWS_PROFILE or its keys") from error
        except errors.ClientError as error:
            raise _refused(error) from error
        except errors.BotoCoreError as error:
            raise Unavailable(f"{SERVICE} does not answer; try again later") from error


def spot_quote(entry: dict[str, Any], region: str, now: float) -> Quote | None:
    """One entry of the history; None for a machine that we do not know."""
    machine = MACHINES.get(("aws", str(entry["InstanceType"])))
    if machine is None:
        return None
    return machine.quote(
        region=region, zone=str(entry["AvailabilityZone"]),
        micro_usd_per_h=round(float(entry["SpotPrice"]) * 1e6), market="spot",
        priced_at=entry["Timestamp"].timestamp(), seen_at=now, source=SOURCE, confidence="live",
    )  # fmt: skip


def _refused(error: Any) -> Denied | Unavailable:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if "Limit" in code or "Throttl" in code:
        return Unavailable(f"{SERVICE} limits how often it may be asked; try again in a minute")
    if "Auth" in code or "Unauthorized" in code or "Token" in code:
        return Denied(
            f"{SERVICE} refuses the credentials ({code}); allow ec2:DescribeSpotPriceHistory"
        )
    return Unavailable(f"{SERVICE} answers {code}; try again later")
