"""A Jupyter server with our extension, over a state directory of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloudshift_lab.core.home import home

pytest_plugins = ("pytest_jupyter.jupyter_server",)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scripted = _load("scripted_conductor")


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(tmp_path / "cloudshift"))
    return home()


@pytest.fixture
def jp_server_config(state_dir: Path) -> dict[str, Any]:
    return {"ServerApp": {"jpserver_extensions": {"cloudshift_lab": True}}}


@pytest.fixture
def conductor(state_dir: Path) -> Iterator[Any]:
    running = scripted.ScriptedConductor(state_dir).start()
    yield running
    running.close()


@pytest.fixture
def start_conductor(state_dir: Path) -> Iterator[Callable[[], Any]]:
    """Start scripted conductors by hand, to see them come and go."""
    started: list[Any] = []

    def start() -> Any:
        started.append(scripted.ScriptedConductor(state_dir).start())
        return started[-1]

    yield start
    for conductor in started:
        conductor.close()
