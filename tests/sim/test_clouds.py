"""The simulated clouds: real servers, started once, listed honestly, gone when told to."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.home import clouds_path, load_clouds, save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds
from cloudshift_lab.sim.clouds import AWS_SIM, GCP_SIM, SimClouds
from cloudshift_lab.storage.store import open_cloud_store, open_store, probe_store


def test_both_clouds_are_listed_as_simulated_with_working_stores(simulated_clouds: Clouds) -> None:
    for name in (AWS_SIM, GCP_SIM):
        cloud = simulated_clouds.find(name)
        assert cloud.simulated
        assert "simulated" in cloud.title
        probe_store(open_cloud_store(cloud))
    assert simulated_clouds.find(AWS_SIM).store_url == "s3://cloudshift-aws-sim/lab"
    assert simulated_clouds.find(GCP_SIM).store_url == "gs://cloudshift-gcp-sim/lab"


def test_every_offer_says_that_it_is_simulated_and_how_old_its_price_is(
    simulated_clouds: Clouds,
) -> None:
    offers = [o for name in (AWS_SIM, GCP_SIM) for o in simulated_clouds.find(name).offers]
    assert len({(offer.cloud, offer.region) for offer in offers}) == 4
    for offer in offers:
        assert offer.simulated
        assert offer.source.startswith("simulated cloud; list price of ")
        assert offer.as_of in offer.source
        assert offer.price_micro_usd_per_h > 0


def test_the_demo_moves_to_the_cheaper_cloud(simulated_clouds: Clouds) -> None:
    _, here = simulated_clouds.resolve("aws-sim:us-east-1")
    _, there = simulated_clouds.resolve("gcp-sim:us-central1")
    assert there.price_micro_usd_per_h < here.price_micro_usd_per_h


def test_egress_gets_cheaper_by_volume_and_never_ends(simulated_clouds: Clouds) -> None:
    for name in (AWS_SIM, GCP_SIM):
        prices = [tier.micro_usd_per_gb for tier in simulated_clouds.find(name).egress]
        assert prices == sorted(prices, reverse=True)
        assert simulated_clouds.find(name).egress[-1].up_to_gb is None


def test_going_up_twice_keeps_the_servers_and_their_objects(simulated_home: Path) -> None:
    clouds = SimClouds(simulated_home)
    before, store = clouds.status(), open_cloud_store(load_clouds(simulated_home).find(AWS_SIM))
    store.put("kept/across-up", b"x")
    lines: list[str] = []
    clouds.up(lines.append)
    assert clouds.status() == before
    assert store.get("kept/across-up") == b"x"
    assert all("already runs" in line for line in lines)
    assert len(lines) == 2


def test_the_cloud_list_is_private_and_keeps_what_a_person_wrote(simulated_home: Path) -> None:
    mine = Cloud(name="mine", title="my bucket", store_url="s3://mine/lab")
    found = load_clouds(simulated_home).clouds
    save_clouds(simulated_home, Clouds(clouds=(*found[1:], mine)))
    SimClouds(simulated_home).up()
    names = [cloud.name for cloud in load_clouds(simulated_home).clouds]
    assert sorted(names) == sorted(["local", "mine", AWS_SIM, GCP_SIM])
    assert clouds_path(simulated_home).stat().st_mode & 0o777 == 0o600


UP = "from pathlib import Path; from cloudshift_lab.sim.clouds import SimClouds; import sys; "


def test_the_servers_survive_the_process_that_started_them_until_down(tmp_path: Path) -> None:
    code = f"{UP}SimClouds(Path(sys.argv[1])).up(print)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    clouds = SimClouds(tmp_path)
    try:
        assert [status.running for status in clouds.status()] == [True, True]
        cloud = load_clouds(tmp_path).find(GCP_SIM)
        probe_store(open_cloud_store(cloud))
    finally:
        lines: list[str] = []
        clouds.down(lines.append)
    assert lines[0].startswith("aws-sim") and "they are gone" in lines[0]
    assert lines[1].startswith("gcp-sim") and "stay on disk" in lines[1]
    assert [status.running for status in clouds.status()] == [False, False]
    assert [c.name for c in load_clouds(tmp_path).clouds] == ["local"]
    options = {"token": "anon", "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(Unavailable):
        open_store(cloud.store_url, options, deadline_s=0.5).get("a")
    clouds.down()


def test_a_state_file_of_a_process_that_is_gone_is_not_believed(
    simulated_home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sim"
    folder.mkdir()
    state = (simulated_home / "sim" / f"{AWS_SIM}.json").read_text()
    (folder / f"{AWS_SIM}.json").write_text(state.replace('"ticks:', '"ticks:9'))
    (folder / f"{GCP_SIM}.json").write_text("{damaged")
    assert [status.running for status in SimClouds(tmp_path).status()] == [False, False]
