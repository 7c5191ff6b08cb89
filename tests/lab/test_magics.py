import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.magics import Memory

HEAVY = {"torch", "panel", "s3fs", "gcsfs", "plotly"}


@pytest.fixture
def shell(home) -> Iterator[InteractiveShell]:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "cloudshift_lab")
    yield shell
    shell.run_line_magic("unload_ext", "cloudshift_lab")
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def run(shell: InteractiveShell, code: str) -> Any:
    return shell.run_cell(code)


def test_loading_prints_one_line_that_says_what_to_type_next(home, capsys, shell) -> None:
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "conductor not running" in lines[0]
    assert "next: %cloudshift clouds up" in lines[0]


@pytest.mark.parametrize("code", ["import cloudshift_lab.lab", "import cloudshift_lab.lab.magics"])
def test_loading_pulls_in_nothing_heavy(code: str) -> None:
    program = f"{code}; import sys, json; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True)  # fmt: skip
    loaded = set(json.loads(done.stdout))
    assert loaded & (HEAVY | {"anywidget", "ipywidgets", "duckdb", "pyarrow"}) == set()


def test_a_train_cell_starts_a_run_and_returns_it_at_once(service, shell) -> None:
    result = run(shell, "%%cloudshift train --name gpt --on aws-sim\nprint(1)\n")
    assert result.success
    assert repr(result.result) == "Run('run-1', name='gpt', state='starting')"
    (spec,) = service.specs
    assert spec.script.splitlines()[1] == "print(1)"
    assert (spec.name, spec.target) == ("gpt", "aws-sim")
    assert spec.python == sys.executable


def test_a_cell_imports_the_modules_beside_the_notebook(
    service, shell, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text("SIZE = 7\n")
    run(shell, "%%cloudshift train --env PYTHONPATH=/mine A=1\nimport my_model\n")
    (spec,) = service.specs
    paths = spec.env["PYTHONPATH"].split(os.pathsep)
    assert (paths[:2], spec.env["A"]) == ([str(tmp_path), "/mine"], "1")
    code = "import my_model, cloudshift_lab; print(my_model.SIZE)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **spec.env}, cwd="/",
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "7\n"


def test_a_run_shows_itself_in_text_and_html(service, shell) -> None:
    shown = run(shell, "%%cloudshift train\nprint(1)\n").result
    formats, _ = shell.display_formatter.format(shown)
    assert set(formats) >= {"text/plain", "text/html"}
    assert "simulated" in formats["text/html"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("%cloudshift migrat", "did you mean 'migrate'?"),
        ("%cloudshift watch nothing", "no run called 'nothing'"),
        ("%%cloudshift train --on mars\nprint(1)", "no cloud called 'mars'"),
        ("%%cloudshift train\nx = (1\n", "line 2 of the cell has a syntax error"),
        ("%%cloudshift status\nprint(1)", "takes no cell"),
        ("%cloudshift approve", "no move waits for a decision"),
        ("import cloudshift_lab as cs; cs.run('nothing')", "no run called 'nothing'"),
    ],
)
def test_our_errors_are_one_line_and_fail_the_cell(service, shell, capsys, code, says) -> None:
    capsys.readouterr()
    result = run(shell, code)
    captured = capsys.readouterr()
    shown = (captured.out + captured.err).strip()
    assert not result.success
    assert says in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) == 1
    assert service.specs == []


def test_a_bug_of_ours_is_one_line_too_and_its_traceback_is_kept(home) -> None:
    with (
        pytest.raises(CloudshiftError) as caught,
        Desk("notebook", "%cloudshift").one_line_errors(),
    ):
        raise KeyError("x")
    assert "this is a bug of ours (KeyError: 'x')" in caught.value.message
    assert "Traceback" in (home / "lab-errors.log").read_text()


def test_a_state_directory_that_cannot_be_made_is_told_in_one_line(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="point CLOUDSHIFT_HOME elsewhere"):
        Desk("notebook", "%cloudshift").client()


def test_waiting_for_a_script_that_raises_fails_the_cell_with_its_traceback(
    service, shell, capsys, make_run
) -> None:
    service.started = make_run(state="failed", error="ValueError: no", error_rank=1,
                               traceback='File "cell", line 3\nValueError: no')  # fmt: skip
    result = run(shell, "%%cloudshift train --wait\nraise ValueError('no')\n")
    shown = capsys.readouterr().out
    assert not result.success
    assert 'File "cell", line 3' in shown
    assert "rank 1 of train failed" in shown


def test_migrate_shows_the_bill_and_keeps_the_move(service, shell, capsys, make_run) -> None:
    service.views = [make_run()]
    result = run(shell, "move = %cloudshift migrate first --to gcp-sim")
    assert result.success
    run(shell, "move")
    assert "pays for itself" in capsys.readouterr().out
    assert run(shell, "move.approve().phase").result == "approved"
    assert service.decisions[0].by.endswith("(notebook)")


def test_json_is_printed_in_a_notebook_too(service, shell, capsys, make_run) -> None:
    service.views = [make_run()]
    capsys.readouterr()
    assert run(shell, "%cloudshift status --json").result is None
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == "first"


def test_tab_offers_names_it_has_looked_up_before(service, shell, make_run) -> None:
    service.views = [make_run()]
    memory = Memory(Desk("notebook", "%cloudshift"))
    memory.look()
    assert memory.catalogue.runs == ("first", "run-1")
    assert memory.catalogue.targets == ("local:here",)
    assert memory.catalogue.refs() == (
        "first@latest", "first@100", "run-1@latest", "run-1@100",
    )  # fmt: skip


def test_tab_works_through_the_shells_own_completer(shell) -> None:
    with provisionalcompleter():
        for line, word in (
            ("%cloudshift migr", "migrate"),
            ("%%cloudshift train --seed 1 --w", "--wait"),
        ):
            assert [each.text for each in shell.Completer.completions(line, len(line))] == [word]


def test_loading_twice_registers_completion_once(shell) -> None:
    shell.run_line_magic("reload_ext", "cloudshift_lab")
    assert len(shell.Completer.custom_matchers) == 1


def test_the_python_api_is_reached_lazily() -> None:
    code = (
        "import cloudshift_lab as cs, sys; assert 'cloudshift_lab.lab' not in sys.modules; "
        "assert callable(cs.train); assert 'train' in dir(cs); "
        "assert 'cloudshift_lab.lab.api' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_a_missing_name_of_the_package_is_an_attribute_error() -> None:
    import cloudshift_lab

    with pytest.raises(AttributeError, match="nothing_like_this"):
        cloudshift_lab.nothing_like_this  # noqa: B018
