"""What all rooms' tests share: the object-store servers, started once and only if asked for."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Unsupported
from cloudshift_lab.core.home import load_clouds, store_options
from cloudshift_lab.core.placement import Clouds
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.clouds import AWS_SIM, GCP_SIM, SimClouds
from cloudshift_lab.sim.servers import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    Server,
    make_bucket,
    start_server,
    stop_server,
)
from cloudshift_lab.storage.store import Store, open_store

Address = tuple[str, dict[str, object]]

pytest.register_assert_rewrite("cloudshift_lab.sim.contracts", "cloudshift_lab.sim.lease_contract")


def pytest_configure(config: pytest.Config) -> None:
    """End like an interrupt on SIGTERM, so that no server outlives a test run that is cut off."""
    if config.getoption("collectonly"):
        return
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


@pytest.fixture(scope="session")
def simulated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory whose two simulated clouds run until the end of the session."""
    root = tmp_path_factory.mktemp("simulated-home")
    clouds = SimClouds(root)
    clouds.up()
    yield root
    clouds.down()


@pytest.fixture(scope="session")
def simulated_clouds(simulated_home: Path) -> Clouds:
    """The cloud list with ``local``, ``aws-sim`` and ``gcp-sim``."""
    return load_clouds(simulated_home)


@pytest.fixture(scope="session")
def simulated_azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Azurite with a container called ``lab``; skips the test where Azurite is not installed."""
    try:
        server = start_server(tmp_path_factory.mktemp("azure"), "azure-sim", "azure")
    except Unsupported as missing:
        pytest.skip(missing.message)
    make_bucket(server, "lab")
    yield server
    stop_server(server)


@pytest.fixture(scope="session")
def real_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An etcd of the distribution; skips the test where it is not installed."""
    try:
        server = start_server(tmp_path_factory.mktemp("etcd"), "etcd", "etcd")
    except Unsupported as missing:
        pytest.skip(missing.message)
    yield server
    stop_server(server)


@pytest.fixture
def store_address(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Address]:
    """URL and options of an empty store: ``memory``, ``file``, ``s3``, ``gs``, ``az``, ``etcd``."""

    def address(kind: str) -> Address:
        name = REAL_WORLD.new_id("store")
        if kind == "memory":
            return f"memory://{name}", {}
        if kind == "file":
            return f"file://{tmp_path}/{name}", {}
        if kind == "az":
            azure: Server = request.getfixturevalue("simulated_azure")
            account = {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
            return f"az://lab/{name}", {**account, "endpoint_url": azure.endpoint}
        if kind == "etcd":
            etcd: Server = request.getfixturevalue("real_etcd")
            return f"etcd://127.0.0.1:{etcd.port}/{name}", {}
        clouds: Clouds = request.getfixturevalue("simulated_clouds")
        cloud = clouds.find(AWS_SIM if kind == "s3" else GCP_SIM)
        return f"{cloud.store_url}/{name}", store_options(cloud)

    return address


@pytest.fixture
def fresh_store(store_address: Callable[[str], Address]) -> Callable[[str], Store]:
    """Opens an empty store of a kind."""
    return lambda kind: open_store(*store_address(kind))
