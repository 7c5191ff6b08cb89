"""Every feed reads what its service says, and names what it says instead."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from gpuhunt._internal.catalog import OFFLINE_PROVIDERS

from cloudshift_lab.core.errors import Denied, Unavailable
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.feeds.aws import AwsSpotPrices
from cloudshift_lab.feeds.azure import AzurePrices
from cloudshift_lab.feeds.feed import PriceFeed, Query
from cloudshift_lab.feeds.gpuhunt_feed import GpuhuntPrices
from cloudshift_lab.feeds.snapshot import Snapshot
from cloudshift_lab.market.quotes import Quote, checked, may_move_alone
from tests.feeds.price_server import Answers

H100 = Query(accelerator="h100")


def azure_item(**more: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "retailPrice": 98.32, "unitPrice": 98.32, "currencyCode": "USD",
        "armRegionName": "eastus", "armSkuName": "Standard_ND96isr_H100_v5",
        "skuName": "ND96isr H100 v5", "unitOfMeasure": "1 Hour",
        "productName": "Virtual Machines NDsrH100v5 Series",
    }  # fmt: skip
    return plain | more


def azure(service: Answers) -> AzurePrices:
    return AzurePrices(f"{service.url}/api/retail/prices")


def azure_says(service: Answers, *items: dict[str, object], **more: object) -> None:
    body = {"Items": list(items), "NextPageLink": None} | more
    service.say("/api/retail/prices", json.dumps(body).encode())


def fetch(feed: PriceFeed, query: Query = H100) -> list[Quote]:
    return feed.fetch(query, REAL_WORLD)


def test_azure_lists_on_demand_and_spot_of_linux_machines_in_dollars(service: Answers) -> None:
    azure_says(
        service, azure_item(), azure_item(skuName="ND96isr H100 v5 Spot", retailPrice=30.0),
        azure_item(productName="Virtual Machines NDsrH100v5 Series Windows"),
        azure_item(skuName="ND96isr H100 v5 Low Priority"), azure_item(currencyCode="EUR"),
        azure_item(unitOfMeasure="1/Month"),
    )  # fmt: skip
    found = fetch(azure(service), Query(accelerator="H100", regions=("eastus",)))
    of_one = {(q.market, q.micro_usd_per_h) for q in found}
    assert of_one == {("on-demand", 98_320_000), ("spot", 30_000_000)}
    assert all(may_move_alone(quote, REAL_WORLD.now()) for quote in found)
    assert "eastus" in service.asked[0]


def test_azure_is_not_asked_for_other_clouds(service: Answers) -> None:
    assert fetch(azure(service), Query(clouds=("aws",))) == []
    assert service.asked == []


def test_a_zero_price_of_azure_never_becomes_an_offer(service: Answers) -> None:
    azure_says(service, azure_item(retailPrice=0.0))
    good, bad = checked(fetch(azure(service)), REAL_WORLD.now())
    assert good == []
    assert "0 USD" in bad[0].reason


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [(200, b"<!DOCTYPE html><html>login</html>", "a web page"), (200, b"", "nothing"),
     (200, b'{"Items": [{"retailPr', "cut off"), (500, b"", "500"), (200, b"[]", "another form")],
)  # fmt: skip
def test_what_is_no_price_list_is_named(
    service: Answers, status: int, body: bytes, says: str
) -> None:
    service.say("/api/retail/prices", body, status)
    with pytest.raises(Unavailable, match=says):
        fetch(azure(service))


def test_a_rate_limit_says_when_to_come_back(service: Answers) -> None:
    service.say("/api/retail/prices", b"", 429, Retry_After="17")
    with pytest.raises(Unavailable, match="try again in 17 s"):
        fetch(azure(service))


def test_a_refused_key_is_not_tried_again(service: Answers) -> None:
    service.say("/api/retail/prices", b"", 403)
    with pytest.raises(Denied, match="check its key"):
        fetch(azure(service))


def test_a_next_page_elsewhere_is_not_followed(service: Answers) -> None:
    azure_says(service, azure_item(), NextPageLink="http://elsewhere.test/prices")
    with pytest.raises(Unavailable, match="another address"):
        fetch(azure(service))


def test_nobody_at_the_address_is_named() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        fetch(AzurePrices("http://127.0.0.1:9/api"))


EC2 = """<?xml version="1.0" encoding="UTF-8"?>
<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
  <requestId>1</requestId><spotPriceHistorySet>
    <item><instanceType>p5.48xlarge</instanceType><productDescription>Linux/UNIX</productDescription>
      <spotPrice>21.5</spotPrice><timestamp>2026-11-20T10:00:00.000Z</timestamp>
      <availabilityZone>us-east-1a</availabilityZone></item>
    <item><instanceType>p5.48xlarge</instanceType><productDescription>Linux/UNIX</productDescription>
      <spotPrice>19.5</spotPrice><timestamp>2026-11-20T11:00:00.000Z</timestamp>
      <availabilityZone>us-east-1a</availabilityZone></item>
    <item><instanceType>m5.large</instanceType><productDescription>Linux/UNIX</productDescription>
      <spotPrice>0.05</spotPrice><timestamp>2026-11-20T11:00:00.000Z</timestamp>
      <availabilityZone>us-east-1a</availabilityZone></item>
  </spotPriceHistorySet><nextToken></nextToken>
</DescribeSpotPriceHistoryResponse>"""
REFUSED = """<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{}</Code>
<Message>no</Message></Error></Errors><RequestID>1</RequestID></Response>"""


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.mark.usefixtures("keys")
def test_aws_gives_the_newest_spot_price_of_every_zone(service: Answers) -> None:
    service.say("/", EC2.encode())
    found = fetch(AwsSpotPrices(service.url), Query(accelerator="h100", regions=("us-east-1",)))
    assert [(q.zone, q.instance_type, q.micro_usd_per_h) for q in found] == [
        ("us-east-1a", "p5.48xlarge", 19_500_000)
    ]


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [("RequestLimitExceeded", Unavailable, "limits"), ("UnauthorizedOperation", Denied, "allow"),
     ("InternalError", Unavailable, "InternalError")],
)  # fmt: skip
def test_aws_refusals_say_what_to_do(
    service: Answers, code: str, kind: type[Exception], says: str
) -> None:
    service.say("/", REFUSED.format(code).encode(), 400)
    with pytest.raises(kind, match=says):
        fetch(AwsSpotPrices(service.url), Query(regions=("us-east-1",)))


HEAD = (
    "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,"
    "gpu_vendor,flags,cpu_arch,provider_data\n"
)
CATALOGUE = """p5.48xlarge,us-east-1,55.04,192,2048.0,8,H100,80.0,False,,nvidia,,x86,
m5.large,us-east-1,0.1,2,8.0,0,,,False,,,,x86,
"""


def publish(service: Answers, version: str, *, is_damaged: bool = False) -> None:
    """A catalogue of every provider that gpuhunt has; only AWS's has machines."""
    for provider in OFFLINE_PROVIDERS:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr(f"{provider}.csv", HEAD + (CATALOGUE if provider == "aws" else ""))
        body = b"<html>" if is_damaged else packed.getvalue()
        service.say(f"/{provider}/version", version.encode())
        service.say(f"/{provider}/{version}/catalog.zip", body)


@pytest.mark.parametrize(("version", "age"), [("20261101", "dated"), ("v7", "not dated")])
def test_gpuhunt_lists_what_its_published_catalogues_have(
    service: Answers, monkeypatch: pytest.MonkeyPatch, version: str, age: str
) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", service.url)
    publish(service, version)
    (found,) = fetch(GpuhuntPrices())
    assert (found.cloud, found.instance_type, found.micro_usd_per_h) == (
        "aws", "p5.48xlarge", 55_040_000,
    )  # fmt: skip
    if age == "dated":
        assert found.priced_at == 1_793_491_200.0
    assert not may_move_alone(found, REAL_WORLD.now())


def test_gpuhunt_without_any_catalogue_is_named(
    service: Answers, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", service.url)
    publish(service, "20261101", is_damaged=True)
    with pytest.raises(Unavailable, match="gpuhunt's catalogue"):
        fetch(GpuhuntPrices())
    assert "Traceback" not in capfd.readouterr().err


def test_the_table_in_the_package_is_dated_and_moves_nothing_by_itself() -> None:
    found = fetch(Snapshot(), Query())
    good, bad = checked(found, REAL_WORLD.now())
    assert len(good) == len(found) > 80
    assert bad == []
    assert {quote.cloud for quote in found} == {"aws", "azure", "gcp"}
    assert not any(may_move_alone(quote, quote.priced_at) for quote in found)
    assert all(quote.source for quote in found)
