"""The doctor's own checks, of this interpreter and its Jupyter, before the conductor's."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from cloudshift_lab import __version__
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.views import Check
from cloudshift_lab.lab.desk import Desk

LAB_EXTENSION = "cloudshift-lab"
SERVER_CONFIG = "jupyter_server_config.d/cloudshift_lab.json"


def examine(desk: Desk) -> tuple[Check, ...]:
    """All checks: this interpreter, Jupyter, then the conductor with its stores."""
    return (_kernel(), _widgets(), _lab_extension(), _server_extension(), *_conductor(desk))


def lab_extension_path() -> Path | None:
    """Where the built JupyterLab extension is installed; None when it is not."""
    from jupyter_core.paths import jupyter_path

    places = (Path(path) / LAB_EXTENSION for path in jupyter_path("labextensions"))
    return next((place for place in places if (place / "package.json").exists()), None)


def server_extension_path() -> Path | None:
    """The file that enables the server extension; None when there is none."""
    from jupyter_core.paths import jupyter_config_path

    places = (Path(path) / SERVER_CONFIG for path in jupyter_config_path())
    return next((place for place in places if place.exists()), None)


def _kernel() -> Check:
    version = _installed("ipykernel")
    ok = version is not None and not version.startswith("7.0.")
    advice = "pip install 'ipykernel>=6.31,!=7.0.*'"
    return Check("ipykernel", ok, version or "not installed", advice)


def _widgets() -> Check:
    version = _installed("anywidget")
    advice = "pip install anywidget; until then use '%cloudshift approve'"
    return Check("widgets", version is not None, f"anywidget {version or 'not installed'}", advice)


def _lab_extension() -> Check:
    place = lab_extension_path()
    advice = "install node, then 'pip install -e .' again; all else works without"
    return Check("Lab extension", place is not None, str(place or "not installed"), advice)


def _server_extension() -> Check:
    place = server_extension_path()
    advice = "jupyter server extension enable cloudshift_lab"
    return Check("server extension", place is not None, str(place or "not enabled"), advice)


def _conductor(desk: Desk) -> tuple[Check, ...]:
    try:
        client = desk.client()
        version = client.health().version
        rest = client.doctor()
    except CloudshiftError as error:
        return (Check("conductor", ok=False, detail=error.message, advice="mend that first"),)
    same = version == __version__
    ours = Check("conductor version", same, version, "cloudshift conductor stop, then try again")
    return (ours, *rest)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
