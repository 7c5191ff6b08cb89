"""Opening the stores that a job names, with the credentials its state directory keeps for them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.storage.store import DEADLINE_S, Store, open_cloud_store


def open_job_store(job: JobSpec) -> Store:
    """The attempt's own store.

    Raises:
        UsageError: Its cloud is not configured here.
    """
    return _open(job, job.placement.cloud, job.store_url)


def open_source_store(job: JobSpec, *, deadline_s: float = DEADLINE_S) -> Store | None:
    """The store a standby copies from; None when the job names none.

    Args:
        job: The standby's.
        deadline_s: Longest time any one call may take, seconds.

    Raises:
        UsageError: Its cloud is not configured here.
    """
    if job.source_cloud is None or job.source_url is None:
        return None
    return _open(job, job.source_cloud, job.source_url, deadline_s=deadline_s)


def open_other_store(job: JobSpec, cloud: str, url: str) -> Store:
    """The store of any cloud that is configured here, by the address that others reach it at.

    Raises:
        UsageError: That cloud is not configured here.
    """
    return _open(job, cloud, url)


def _open(
    job: JobSpec, cloud: str, url: str, *, deadline_s: float = DEADLINE_S
) -> Store:  # fmt: skip
    """With the runs' logs where the cloud keeps them; the job's own address of the data counts."""
    found = msgspec.structs.replace(load_clouds(Path(job.home)).find(cloud), store_url=url)
    inside = cloud == job.placement.cloud
    return open_cloud_store(found, inside=inside, deadline_s=deadline_s)
