"""JupyterLab in a real browser, over a state directory of its own; a process of its own, too.

``pytest tests/ui`` must not share a process with pytest-jupyter, which closes the browser's loop.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.conductor.discovery import find_daemon
from cloudshift_lab.core.run import FINAL_STATES
from cloudshift_lab.lab.dashboard.launch import stop_dashboard

HERE = Path(__file__).parent
SHOTS = HERE.parents[1] / "build" / "ui"
MINUTES_MS = 60_000
expect.set_options(timeout=2 * MINUTES_MS)
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
BUSY_CELL = """\
import time
from pathlib import Path

began = time.monotonic()
while not Path("go_on").exists() and time.monotonic() - began < 900:
    pass
print("the busy cell ended")
"""


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where conductor, runs and simulated clouds of this test live; all ended afterwards."""
    place = tmp_path_factory.mktemp("ui") / "cloudshift"
    place.mkdir()
    yield place
    stop_dashboard(place)
    if find_daemon(place) is not None:
        end_runs(Client.connect(place))
    command = [sys.executable, "-m", "cloudshift_lab", "clouds", "down"]
    subprocess.run(command, env=environment(place), timeout=120, check=False)


def end_runs(client: Client) -> None:
    for run in client.runs():
        if run.state not in FINAL_STATES:
            client.stop(run.run_id)
    wait_for(
        "all runs to end",
        lambda: all(run.state in FINAL_STATES for run in client.runs()),
        deadline_s=120,
    )
    client.shutdown()


def environment(state_dir: Path) -> dict[str, str]:
    return {**os.environ, "CLOUDSHIFT_HOME": str(state_dir), "OMP_NUM_THREADS": "1"}


def wait_for(
    what: str,
    reached: Callable[[], object],
    *,
    deadline_s: float = 300,
    pause: Callable[[], object] = lambda: time.sleep(0.2),
) -> None:
    """Look again and again; the failure says what never came."""
    until = time.monotonic() + deadline_s
    while not reached():
        if time.monotonic() > until:
            raise AssertionError(f"waited {deadline_s:.0f} s in vain for {what}")
        pause()


@pytest.fixture(scope="session")
def conductor(state_dir: Path, notebook: Notebook) -> Client:
    """The conductor that the notebook's first cells started."""
    return Client.connect(state_dir, start=False)


class LabServer:
    """A JupyterLab process under a URL prefix, its files in one temporary folder."""

    TOKEN = "ui-test"

    def __init__(self, folder: Path, state_dir: Path) -> None:
        self.root = folder / "root"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{self._port}/user/ada/"
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        for place in (self.root, settings, folder / "workspaces"):
            place.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
        own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
        own["JUPYTER_RUNTIME_DIR"] = str(folder / "runtime")
        self._log = (folder / "lab.log").open("wb")
        self._process = subprocess.Popen(
            self._command(folder),
            env=environment(state_dir) | own,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _command(self, folder: Path) -> list[str]:
        options = {
            "ServerApp.port": self._port, "ServerApp.port_retries": 0, "ServerApp.ip": "127.0.0.1",
            "ServerApp.base_url": "/user/ada/", "ServerApp.root_dir": self.root,
            "IdentityProvider.token": self.TOKEN,
            "LabApp.user_settings_dir": folder / "settings",
            "LabApp.workspaces_dir": folder / "workspaces", "LabApp.extension_manager": "readonly",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *flags]

    def answers(self) -> bool:
        assert self._process.poll() is None, f"JupyterLab ended; see {self._log.name}"
        try:
            urllib.request.urlopen(f"{self.base}api/status?token={self.TOKEN}", timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
        return True

    def open(self, page: Page, path: str = "lab") -> None:
        page.goto(f"{self.base}{path}?token={self.TOKEN}&reset", timeout=3 * MINUTES_MS)
        splash = page.locator("#jupyterlab-splash")
        splash.wait_for(state="detached", timeout=3 * MINUTES_MS)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="session")
def start_lab(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path], LabServer]]:
    """Start JupyterLab over a state directory; it is ended with the tests."""
    started: list[LabServer] = []

    def start(state_dir: Path) -> LabServer:
        server = LabServer(tmp_path_factory.mktemp("lab"), state_dir)
        started.append(server)
        wait_for("JupyterLab to answer", server.answers)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def lab(start_lab: Callable[[Path], LabServer], state_dir: Path) -> LabServer:
    return start_lab(state_dir)


@pytest.fixture(scope="session")
def scripted() -> ModuleType:
    """The conductor of ``tests/server``: the real HTTP layer over a service that is a script."""
    path = HERE.parent / "server" / "scripted_conductor.py"
    spec = importlib.util.spec_from_file_location("scripted_conductor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None and os.environ.get("CI"):
        pytest.fail("no chromium here, and a CI that skips the browser proves nothing")
    if path is None:
        pytest.skip("no chromium here; install it to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*CHROMIUM_FLAGS])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def strangers() -> list[str]:
    """Every address outside this machine that a page asked for."""
    return []


class Desktop:
    """JupyterLab's page and what a person does around the notebooks."""

    PANEL = "cloudshift-lab:panel"

    def __init__(self, page: Page) -> None:
        self.page = page

    def open_side_panel(self) -> Locator:
        panel = self.page.locator(f"[id='{self.PANEL}']")
        if not panel.is_visible():
            self.page.locator(f'.jp-SideBar [data-id="{self.PANEL}"]').click()
        panel.wait_for()
        return panel

    def toast(self, text: str) -> Locator:
        return self.page.locator(".Toastify__toast").filter(has_text=text)

    def choose_theme(self, name: str) -> None:
        """``Light`` or ``Dark``, by the menu."""
        menu = self.page.locator(".lm-Menu")
        self.page.get_by_role("menuitem", name="Settings").first.click()
        menu.get_by_text("Theme", exact=True).hover()
        menu.get_by_text(f"JupyterLab {name}", exact=True).click()
        light = "true" if name == "Light" else "false"
        self.page.locator(f"body[data-jp-theme-light='{light}']").wait_for(state="attached")

    def shoot(self, name: str) -> None:
        """Keep a picture."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


class Notebook(Desktop):
    """An open notebook and what a person does in it."""

    def run_cell(self, number: int) -> None:
        """Run the selected cell, the notebook's ``number``-th, and wait until it has ended."""
        self.start_cell()
        self.prompt(number).get_by_text(f"[{number}]:").wait_for()

    def start_cell(self) -> None:
        """Run the selected cell and go on at once."""
        self.page.keyboard.press("Shift+Enter")

    def prompt(self, number: int) -> Locator:
        """Where Jupyter shows ``[4]:``, or ``[*]:`` while the cell runs."""
        return self.page.locator(".jp-CodeCell .jp-InputPrompt").nth(number - 1)

    def wait_for(
        self, what: str, reached: Callable[[], object], *, deadline_s: float = 300
    ) -> None:
        """Look again and again while the page lives on."""
        wait_for(
            what, reached, deadline_s=deadline_s, pause=lambda: self.page.wait_for_timeout(200)
        )


@pytest.fixture(scope="session")
def desktop_of() -> Callable[[Page], Desktop]:
    """JupyterLab's page as a person uses it."""
    return Desktop


@pytest.fixture(scope="session")
def notebook(lab: LabServer, browser: Browser, strangers: list[str]) -> Iterator[Notebook]:
    """A notebook whose first three cells have run: magics, clouds, and a run in training."""
    cells = [
        "%load_ext cloudshift_lab",
        "%cloudshift clouds up",
        "%%cloudshift train --name ui --on aws-sim:us-east-1 --checkpoint-every 200 --seed 7"
        " --approve 'auto if pause < 0.001s'\n" + (HERE / "tiny_training.py").read_text(),
        "%cloudshift migrate --to gcp-sim:us-central1",
        BUSY_CELL,
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )
    nbformat.write(document, lab.root / "move.ipynb")
    page = browser.new_page(viewport={"width": 1440, "height": 1200})
    page.set_default_timeout(3 * MINUTES_MS)
    page.on("request", lambda request: note_stranger(request.url, strangers))
    opened = Notebook(page)
    try:
        lab.open(page, "lab/tree/move.ipynb")
        page.locator(".jp-StatusBar-Widget").get_by_text("| Idle").wait_for()
        page.locator(".jp-CodeCell .jp-InputPrompt").first.click()
        for number in (1, 2, 3):
            opened.run_cell(number)
    except PlaywrightError:
        opened.shoot("failed-opening")
        raise
    yield opened
    page.close()


def note_stranger(url: str, strangers: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
        strangers.append(url)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Keep a picture of what went wrong."""
    report = yield
    for seen in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(seen, Desktop):
            seen.shoot(f"failed-{item.name}")
    return report
