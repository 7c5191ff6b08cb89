"""What must hold for the extension to be found, built anywhere, and right in every theme."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cloudshift_lab

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "extensions" / "jupyterlab"


def test_the_extension_carries_the_packages_version() -> None:
    for name in ("package.json", "package-lock.json"):
        stated = json.loads((SOURCES / name).read_text())["version"]
        assert stated == cloudshift_lab.__version__, name


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    assert len(lock["packages"]) > 100
    assert [name for name, entry in lock["packages"].items() if "resolved" in entry] == []


def test_the_bundler_is_pinned_where_all_its_platform_packages_exist() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/@rspack/core"]["version"] == "2.2.9"


def test_jupyter_is_told_to_load_the_server_extension() -> None:
    config = json.loads((ROOT / "jupyter-config" / "cloudshift_lab.json").read_text())
    assert config["ServerApp"]["jpserver_extensions"] == {"cloudshift_lab": True}
    (point,) = cloudshift_lab._jupyter_server_extension_points()
    assert point["module"] == "cloudshift_lab.lab.server"


def test_colours_come_from_the_theme_alone() -> None:
    style = (SOURCES / "style" / "base.css").read_text()
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", style) == []
    scripts = "".join(path.read_text() for path in (SOURCES / "src").glob("*.ts*"))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", scripts) == []


def test_routes_and_events_agree_between_page_and_server() -> None:
    from cloudshift_lab.lab.server.announce import CHANGED_SCHEMA_ID

    assert CHANGED_SCHEMA_ID in (SOURCES / "src" / "model.ts").read_text()
    api = (SOURCES / "src" / "api.ts").read_text()
    for part in ("cloudshift/api", "cloudshift/dashboard/", "conductor/start"):
        assert part in api
