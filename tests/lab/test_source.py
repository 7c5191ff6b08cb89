import os
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.lab.source import name_of, script_of_cell, script_of_file, with_modules_here


def test_line_numbers_of_the_script_are_those_of_the_cell() -> None:
    script = script_of_cell("import os\nraise ValueError\n")
    assert script.splitlines()[2] == "raise ValueError"  # line 3 of the cell, magic line included


def test_a_future_import_may_still_come_first() -> None:
    script = script_of_cell("from __future__ import annotations\nx: int = 1\n")
    compile(script, "cell", "exec")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = 1\nif x\n    y = 2\n", "line 3 of the cell has a syntax error (expected ':'): if x"),
        ("x = (1,\n", "line 2 of the cell has a syntax error"),
        ("def f():\nreturn 1\n", "line 3 of the cell"),
        ("return 1\n", "line 2 of the cell has a syntax error ('return' outside function)"),
        ("import os\n!ls\n", "line 3 of the cell is notebook magic: !ls"),
        ("%pip install torch\n", "line 2 of the cell is notebook magic"),
        ("x = '\0'\n", "cannot be compiled"),
        ("", "holds no script"),
        ("\n  # only a comment\n", "holds no script"),
    ],
)
def test_a_cell_that_cannot_run_is_refused_by_its_line(body: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        script_of_cell(body)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_a_doubtful_escape_is_the_authors_own_business() -> None:
    script_of_cell("x = '\\d'\n")


def test_a_file_is_given_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    monkeypatch.chdir(tmp_path)
    assert script_of_file("train.py") == str(tmp_path / "train.py")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "train.py"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*train\.py"):
        script_of_file(str(path))


def test_a_file_with_a_syntax_error_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("x = 1\ny = = 2\n")
    with pytest.raises(UsageError, match=r"line 2 of .*train\.py has a syntax error"):
        script_of_file(str(path))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/gpt.py", "gpt"),
        ("my model (2).py", "my-model-2"),
        ("???.py", "train"),
        ("é.py", "train"),
    ],
)
def test_a_run_is_called_after_its_file(path: str, name: str) -> None:
    assert name_of(path) == name


def test_modules_beside_the_author_come_first_and_nothing_that_was_found_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/inherited")
    paths = with_modules_here({"PYTHONPATH": "/mine"})["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(tmp_path), "/mine"]
    assert paths[-1] == "/inherited"
