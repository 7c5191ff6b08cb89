"""Every notebook we ship runs from top to bottom against real processes."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.run import FINAL_STATES
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.lab.dashboard.launch import stop_dashboard
from cloudshift_lab.lab.grammar import parse_line
from cloudshift_lab.sim.clouds import SimClouds

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
README_CELL = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LIMIT_S = 600


def readme_cell(beginning: str) -> str:
    """The one code cell of the README that begins so."""
    cells = README_CELL.findall((ROOT / "README.md").read_text())
    (cell,) = [cell for cell in cells if cell.startswith(beginning)]
    return str(cell)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of its own; whatever the notebook leaves running there is ended."""
    root = tmp_path / "home"
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(root))
    yield root
    try:
        client = Client.connect(root, start=False)
        for run in client.runs():
            client.stop(run.run_id)
        await_end(client)
        client.shutdown()
    except Unavailable:
        print("no conductor was left running")
    stop_dashboard(root)
    SimClouds(root).down()


def await_end(client: Client) -> None:
    until = REAL_WORLD.monotonic() + 60
    while any(run.state not in FINAL_STATES for run in client.runs()):
        if REAL_WORLD.monotonic() > until:
            raise AssertionError("a run did not stop")
        REAL_WORLD.sleep(0.5)


def test_the_quickstart_is_shipped_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOKS / "01_quickstart.ipynb", as_version=4).cells
    assert [cell.id for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize(
    ("name", "num_pictures"),
    [
        ("02_live_migration.ipynb", 4),
        ("03_failures.ipynb", 3),
        ("04_is_it_worth_moving.ipynb", 2),
    ],
)
def test_a_story_is_shipped_with_small_outputs_and_without_errors(
    name: str, num_pictures: int
) -> None:
    path = NOTEBOOKS / name
    assert path.stat().st_size < 400_000
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if not cell.execution_count] == []
    errors = [cell.id for cell in code for each in cell.outputs if each.output_type == "error"]
    assert errors == []
    pictures = [
        cell.id for cell in code for each in cell.outputs if "image/png" in each.get("data", {})
    ]
    assert len(pictures) >= num_pictures


def test_the_story_of_a_live_move_is_true(home: Path, tmp_path: Path) -> None:
    document = nbformat.read(NOTEBOOKS / "02_live_migration.ipynb", as_version=4)
    nbclient.NotebookClient(
        document, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = {cell.id: text_of(cell) for cell in document.cells if cell.cell_type == "code"}
    assert "rehearsal: the target computes 4 steps before the commit" in shown["propose"]
    assert "(chosen)" in shown["propose"]
    assert "simulated futures" in shown["propose"]
    assert "rehearsed: " in shown["watch"]
    assert "source retired" in shown["watch"]
    assert "'stopped', 'finished'" in shown["control"]
    compared = re.search(r"^\((\d+), (\S+)\)$", shown["losses-plot"], re.MULTILINE)
    assert compared is not None, shown["losses-plot"]
    assert (int(compared[1]) > 45, float(compared[2])) == (True, 0.0)
    assert "1 receipt of moved, chain checked" in shown["receipt"]
    assert "['source_retired']" in shown["chain"]


def test_the_story_of_a_killed_rank_is_true(home: Path, tmp_path: Path) -> None:
    document = nbformat.read(NOTEBOOKS / "03_failures.ipynb", as_version=4)
    nbclient.NotebookClient(
        document, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = {cell.id: text_of(cell) for cell in document.cells if cell.cell_type == "code"}
    assert "rank 1 was killed after step" in shown["kill"]
    assert "('running', 1)" in shown["kill"]
    repeated = re.search(r"steps done twice: (-?\d+)", shown["rows"])
    assert repeated is not None and 0 <= int(repeated[1]) <= 1, shown["rows"]
    assert "rank 1 was killed by SIGKILL" in shown["health"]
    assert "1 healed in place" in shown["goodput"]
    assert "['backward', 'data', 'forward', 'optimizer']" in shown["sections"]
    assert "('finished', 'finished')" in shown["control"]
    assert "(200, 0.0)" in shown["losses"]


def test_the_quickstart_moves_a_run_to_another_cloud(home: Path, tmp_path: Path) -> None:
    document = nbformat.read(NOTEBOOKS / "01_quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(
        document, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = {cell.id: text_of(cell) for cell in document.cells if cell.cell_type == "code"}
    assert "conductor not running" in shown["load"]
    assert "simulated" in shown["clouds"]
    assert "pays for itself" in shown["move"]
    assert "'source_retired'" in shown["moved"]
    assert "gcp-sim:us-central1" in shown["status"]
    assert "attempt 2" in shown["cost"]


def test_the_readme_does_what_it_shows(home: Path, tmp_path: Path) -> None:
    load, train, watch = (
        readme_cell(of) for of in ("%load_ext", "%%cloudshift train", "%cloudshift watch")
    )
    wait = "import cloudshift_lab as cs\ncs.run('gpt').wait(until_step=5)"
    cells = [nbformat.v4.new_code_cell(source) for source in (load, train, wait, watch)]
    document = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        document, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert "gpt (run-1)" in text_of(cells[1])
    assert "gcp-sim:us-central1" in text_of(cells[3])
    assert "next: %cloudshift approve mig-1" in text_of(cells[3])
    assert Client.connect(home, start=False).run("gpt").state == "running"


@pytest.mark.parametrize(
    ("beginning", "verbs"),
    [
        ("%cloudshift log", ["log", "diff", "branch", "restore", "verify"]),
        ("%cloudshift health", ["health", "goodput", "maintenance"]),
    ],
)
def test_the_readmes_verbs_can_be_typed(beginning: str, verbs: list[str]) -> None:
    lines = readme_cell(beginning).splitlines()
    typed = [parse_line(line.removeprefix("%cloudshift ")).verb.name for line in lines]
    assert typed == verbs


def test_the_readmes_own_loop_saves_and_goes_on(tmp_path: Path) -> None:
    loop = readme_cell("from cloudshift_lab.training import (")
    url = (tmp_path / "store").as_uri()
    for old, new in (
        ("s3://bucket/folder", url),
        ("10_000", "last"),
        ("step, {", "step, force=True, app_state={"),
    ):
        assert old in loop
        loop = loop.replace(old, new)
    weight = torch.nn.Linear(2, 1)
    names = {"model": weight, "optimizer": torch.optim.AdamW(weight.parameters()), "last": 3}
    trained: list[int] = []
    for last in (3, 5):
        exec(loop, names | {"last": last, "train": trained.append})
    assert trained == [0, 1, 2, 3, 4]


def text_of(cell: nbformat.NotebookNode) -> str:
    """All that a cell put out, as text."""
    return "\n".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in cell.outputs
    )
