"""Which stores an agent opens: its own from inside, others from outside, logs where they belong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.agent.stores import open_job_store, open_other_store, open_source_store
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import open_store

from .conftest import make_job


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    home = tmp_path / "home"
    home.mkdir()
    clouds = (
        Cloud("here", "here", store_url=f"file://{tmp_path}/here"),
        Cloud(
            "split", "split", store_url=f"file://{tmp_path}/data",
            log_url=f"file://{tmp_path}/logs",
        ),
    )  # fmt: skip
    save_clouds(home, Clouds(clouds))
    placement = Placement("split", "r", "m", ranks_per_node=1)
    return make_job(placement=placement, home=str(home), store_url=f"file://{tmp_path}/data")


def test_the_log_of_a_run_is_kept_where_its_cloud_says(job: JobSpec, tmp_path: Path) -> None:
    store = open_job_store(job)
    RunLog(store, "run-a").acquire(generation=1, owner="o", nonce="n")
    store.put("packs/x", b"data")
    logs, data = open_store(f"file://{tmp_path}/logs"), open_store(f"file://{tmp_path}/data")
    assert RunLog(logs, "run-a").sync().owner == "o"
    assert data.get("packs/x") == b"data"
    assert logs.size("packs/x") is None


def test_a_job_goes_on_in_its_own_folder_though_its_cloud_has_another_by_now(
    job: JobSpec, tmp_path: Path
) -> None:
    moved = msgspec.structs.replace(job, store_url=f"file://{tmp_path}/former")
    open_job_store(moved).put("a", b"1")
    assert open_store(f"file://{tmp_path}/former").get("a") == b"1"


def test_a_standbys_source_and_a_place_to_push_to_are_other_stores(
    job: JobSpec, tmp_path: Path
) -> None:
    assert open_source_store(job) is None
    here = f"file://{tmp_path}/here"
    standby = msgspec.structs.replace(job, source_cloud="here", source_url=here)
    source = open_source_store(standby)
    assert source is not None and source.url == here
    assert open_other_store(job, "here", here).url == here


def test_a_cloud_that_is_not_configured_is_named(job: JobSpec) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        open_other_store(job, "nowhere", "file:///x")
