import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Cloud, Clouds, Offer, Placement


def offer(cloud, region, price):
    return Offer(cloud=cloud, region=region, instance_type=f"m{price}", price_micro_usd_per_h=price)


CLOUDS = Clouds(
    clouds=(
        Cloud(name="aws", title="A", store_url="s3://a", offers=(
            offer("aws", "east", 30), offer("aws", "east", 10), offer("aws", "west", 5))),
        Cloud(name="gcp", title="G", store_url="gs://g", offers=(offer("gcp", "central", 7),)),
        Cloud(name="bare", title="B", store_url="file:///b"),
    )
)  # fmt: skip


def test_every_region_is_named_once_in_the_order_of_the_offers():
    assert CLOUDS.targets() == ("aws:east", "aws:west", "gcp:central")


@pytest.mark.parametrize(
    ("target", "region", "price"),
    [
        ("aws:east", "east", 10),
        ("aws", "west", 5),
        ("gcp:central", "central", 7),
        ("gcp", "central", 7),
    ],
)
def test_a_target_is_the_cheapest_offer_there(target, region, price):
    cloud, found = CLOUDS.resolve(target)
    assert (cloud.name, found.region, found.price_micro_usd_per_h) == (
        target.partition(":")[0],
        region,
        price,
    )


@pytest.mark.parametrize("target", ["azure", "aws:north", "bare", "", ":east", "aws:east:1"])
def test_an_unknown_target_lists_the_known_ones(target):
    with pytest.raises(UsageError, match="choose one of: aws:east, aws:west, gcp:central"):
        CLOUDS.resolve(target)


def test_a_placement_knows_its_name_and_its_number_of_ranks():
    placement = Placement("gcp", "central", "m", nodes=3, ranks_per_node=4)
    assert (placement.target, placement.world_size) == ("gcp:central", 12)
