"""The dashboard process, and the way to it through Jupyter's login."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.engines.process import environment
from cloudshift_lab.lab.dashboard import launch


@pytest.fixture(scope="module")
def dashboard_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One dashboard process for all tests here: it takes seconds to start."""
    place = tmp_path_factory.mktemp("dashboard")
    yield place
    launch.stop_dashboard(place)


@pytest.fixture
def state_dir(dashboard_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(dashboard_home))
    return dashboard_home


async def test_the_page_comes_through_jupyter_and_starts_the_dashboard(
    jp_fetch: Any, state_dir: Path
) -> None:
    page = await jp_fetch("cloudshift", "dashboard/", request_timeout=180)
    assert b"<title>CloudShift</title>" in page.body
    assert b'src="static/' in page.body, "addresses are relative, so any prefix works"
    assert b"cdn" not in page.body.lower()


async def test_static_files_come_through_too(jp_fetch: Any, state_dir: Path) -> None:
    file = await jp_fetch(
        "cloudshift", "dashboard", "static", "js", "bokeh.min.js", request_timeout=180
    )
    assert len(file.body) > 100_000


async def test_a_stranger_gets_neither_page_nor_websocket(
    jp_fetch: Any, jp_ws_fetch: Any, state_dir: Path
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(
            "cloudshift", "dashboard/", headers={"Authorization": ""}, follow_redirects=False
        )
    assert refused.value.code == 302
    assert refused.value.response is not None
    assert "/login?" in refused.value.response.headers["Location"]
    with pytest.raises(HTTPClientError) as refused:
        await jp_ws_fetch("cloudshift", "dashboard", "ws", headers={"Authorization": ""})
    assert refused.value.code == 403


async def test_the_dashboard_is_read_only(jp_fetch: Any, state_dir: Path) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("cloudshift", "dashboard", "x", method="POST", body="{}")
    assert refused.value.code == 405


def test_who_does_not_know_the_secret_path_sees_nothing(state_dir: Path) -> None:
    found = launch.ensure_dashboard(state_dir)
    with urllib.request.urlopen(found.url, timeout=60) as page:
        assert b"CloudShift" in page.read()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{found.port}/", timeout=60)
    assert refused.value.code == 404
    refused.value.close()


def test_there_is_one_dashboard_per_home_and_its_file_is_private(state_dir: Path) -> None:
    found = launch.ensure_dashboard(state_dir)
    assert launch.ensure_dashboard(state_dir) == found
    mode = stat.S_IMODE((state_dir / launch.STATE_FILE).stat().st_mode)
    assert mode == 0o600


def test_a_file_of_a_process_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    launch.publish_dashboard(tmp_path, port=1, prefix="x")
    assert launch.find_dashboard(tmp_path) is not None
    stale = (tmp_path / launch.STATE_FILE).read_text().replace(f"{os.getpid()}", "999999999")
    (tmp_path / launch.STATE_FILE).write_text(stale)
    assert launch.find_dashboard(tmp_path) is None


def test_a_dashboard_that_cannot_start_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match=r"dashboard\.log"):
        launch.ensure_dashboard(tmp_path)


def test_a_dashboard_is_started_with_what_it_needs_from_an_uninstalled_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "path: $PYTHONPATH"\nexit 1\n')
    python.chmod(0o700)
    monkeypatch.setattr(launch.sys, "executable", str(python))
    with pytest.raises(Unavailable):
        launch.ensure_dashboard(tmp_path)
    wanted = environment().get("PYTHONPATH", "")
    assert f"path: {wanted}\n" in (tmp_path / launch.LOG_FILE).read_text()


def test_a_dashboard_nobody_looks_at_ends_and_tidies_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cloudshift_lab.lab.dashboard", "--home", str(tmp_path)]
    ended = subprocess.run([*command, "--idle-s", "0.5"], timeout=300, check=False)
    assert ended.returncode == 0
    assert not (tmp_path / launch.STATE_FILE).exists()
