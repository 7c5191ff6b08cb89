"""The style of the code, held by a test: sizes, names, docstrings, banned things."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cloudshift_lab"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "labextension" not in path.parts)
MAX_LINES_PER_FILE = 500
MAX_LINES_PER_FUNCTION = 60
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base2"}


def tracked_files() -> list[Path]:
    """Files that git knows or would take."""
    if shutil.which("git") is None:
        pytest.skip("no git here: nothing says which files are ours")
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode != 0:
        pytest.skip("not a git checkout: nothing says which files are ours")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_says_its_purpose_in_the_first_line() -> None:
    silent = [relative(p) for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_no_file_outgrows_a_readers_patience() -> None:
    long = {
        relative(p): n
        for p in MODULES
        if (n := len(p.read_text().splitlines())) > MAX_LINES_PER_FILE
    }
    assert long == {}


def test_no_function_outgrows_a_screen() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name} {node.end_lineno - node.lineno + 1} lines"
        for path in MODULES
        for node in functions(ast.parse(path.read_text()))
        if node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_LINES_PER_FUNCTION
    ]
    assert long == []


def test_at_most_five_positional_parameters() -> None:
    many = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in functions(ast.parse(path.read_text()))
        if len(
            [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
        )
        > 5
    ]
    assert many == []


def test_no_module_is_named_after_nothing() -> None:
    vague = [relative(p) for p in MODULES if BANNED_NAMES & set(p.with_suffix("").parts)]
    assert vague == []


def test_rooms_are_the_ones_the_architecture_names() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert {room for room in rooms if f"`{room}/`" not in text} == set()


def test_nothing_is_left_for_later_without_an_issue() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b(?!.*#\d)")
    found = [
        f"{relative(p)}:{n}"
        for p in MODULES
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_no_mock_and_no_pickle_anywhere() -> None:
    banned = re.compile(
        r"unittest\.mock|from mock |pickle\.loads?\(|torch\.load\(|allow_pickle=True"
    )
    exempt = {Path(__file__), PACKAGE / "training" / "trusted.py"}  # the one door for imports
    found = [
        relative(path)
        for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]
        if path not in exempt and banned.search(path.read_text())
    ]
    assert found == []


def test_no_path_of_one_machine_and_no_registry_host_is_written_down() -> None:
    banned = re.compile(r"/work/|/root/|/home/[a-z]+/|\"resolved\": \"http")
    found = [
        f"{relative(path)}:{n}"
        for path in tracked_files()
        if path.suffix in {".py", ".ts", ".tsx", ".md", ".toml", ".json", ".ipynb", ".txt", ""}
        and path != Path(__file__)
        for n, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if banned.search(line)
    ]
    assert found == []


def test_versions_agree_everywhere() -> None:
    import json
    import tomllib

    import cloudshift_lab

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    package = json.loads((ROOT / "extensions/jupyterlab/package.json").read_text())["version"]
    assert {project, package, cloudshift_lab.__version__} == {project}


def test_loading_the_notebook_side_stays_light() -> None:
    code = (
        "import cloudshift_lab.lab, sys;"
        "print({'torch', 'panel', 's3fs', 'gcsfs', 'plotly'} & set(sys.modules))"
    )
    import sys

    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"
