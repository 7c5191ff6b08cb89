"""Checks of the conductor's side: stores, telemetry, disk, and what training will need."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloudshift_lab import __version__
from cloudshift_lab.conductor.maintenance import Maintenance
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.placement import Cloud
from cloudshift_lab.core.views import Check
from cloudshift_lab.storage.store import open_cloud_store, probe_store

_LEAST_FREE_BYTES = 2_000_000_000
_STORE_DEADLINE_S = 10.0
_TORCH_PROBE = (
    "import importlib.util as u, importlib.metadata as m;"
    "print(m.version('torch') if u.find_spec('torch') else '')"
)


def examine(
    root: Path, clouds: tuple[Cloud, ...], *, pid: int, query_telemetry: Callable[[], object]
) -> tuple[Check, ...]:
    """Run all checks; none raises.

    Args:
        root: State directory.
        clouds: What is configured.
        pid: The conductor's process.
        query_telemetry: Asks the telemetry store anything.
    """
    checks: list[Callable[[], Check]] = [
        lambda: _check_telemetry(query_telemetry),
        lambda: _check_disk(root),
        _check_torch,
        *(_store_check(cloud) for cloud in clouds),
    ]
    conductor = Check(name="conductor", ok=True, detail=f"version {__version__}, pid {pid}")
    with ThreadPoolExecutor(max_workers=len(checks), thread_name_prefix="doctor") as pool:
        return (conductor, *pool.map(lambda check: check(), checks))


def _check_telemetry(query: Callable[[], object]) -> Check:
    try:
        query()
    except CloudshiftError as error:
        return Check(name="telemetry", ok=False, detail=error.message, advice=_advice(error))
    return Check(name="telemetry", ok=True, detail="DuckDB answers")


def _check_disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    detail = f"{format_bytes(free)} free below {root}"
    if free >= _LEAST_FREE_BYTES:
        return Check(name="disk", ok=True, detail=detail)
    advice = f"free at least {format_bytes(_LEAST_FREE_BYTES)}, or point CLOUDSHIFT_HOME elsewhere"
    return Check(name="disk", ok=False, detail=detail, advice=advice)


def _check_torch() -> Check:
    """Look for torch in a process of its own: the conductor itself never imports it."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(
            name="torch", ok=False, detail=f"{python}: {error}", advice="check that Python starts"
        )
    version = asked.stdout.strip()
    if version:
        return Check(name="torch", ok=True, detail=f"torch {version}, {python}")
    advice = "install it: pip install 'cloudshift-lab[torch]'"
    return Check(name="torch", ok=False, detail=f"no torch in {python}", advice=advice)


def _store_check(cloud: Cloud) -> Callable[[], Check]:
    def check() -> Check:
        name = f"store {cloud.name}"
        try:
            probe_store(open_cloud_store(cloud, deadline_s=_STORE_DEADLINE_S))
        except CloudshiftError as error:
            return Check(name=name, ok=False, detail=error.message, advice=_advice(error))
        note = " (simulated)" if cloud.simulated else ""
        return Check(name=name, ok=True, detail=f"{cloud.store_url} writes and reads{note}")

    return check


def _advice(error: CloudshiftError) -> str:
    """The part of a message that says what to do."""
    return error.message.rpartition(";")[2].strip() or "see conductor.log"


def examine_maintenance(maintenance: Maintenance) -> tuple[Check, ...]:
    """Whether maintenance requests can be kept and sent; nothing where all is well."""
    if maintenance.damage:
        return (
            Check(
                name="maintenance", ok=False, detail=maintenance.damage,
                advice="restore maintenance.jsonl from a copy",
            ),
        )  # fmt: skip
    waits = {
        f"{each.sink}: {each.trouble}"
        for view in maintenance.all()
        for each in view.deliveries
        if each.trouble
    }
    return tuple(
        Check(name="maintenance", ok=False, detail=words, advice="mend that; it is sent again")
        for words in sorted(waits)
    )
