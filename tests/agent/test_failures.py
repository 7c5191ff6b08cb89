"""Who is blamed for a failure, and what is shown of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cloudshift_lab.agent.failures import first_failure


def told(folder: Path, rank: int, at: float, message: str) -> None:
    failure = {"rank": rank, "at": at, "message": message, "traceback": f"trace of {rank}"}
    (folder / f"rank-{rank}.json").write_text(json.dumps(failure))


def exits(folder: Path, **codes: int) -> None:
    (folder / "launch.json").write_text(json.dumps({k[1:]: v for k, v in codes.items()}))


def test_the_first_rank_that_raised_is_blamed(tmp_path: Path) -> None:
    told(tmp_path, 0, 20.0, "KeyError: 'x'")
    told(tmp_path, 1, 10.0, "ValueError: no row")
    error = first_failure(tmp_path, "")
    assert (error.rank, error.message, error.traceback) == (1, "ValueError: no row", "trace of 1")


def test_a_rank_that_lost_its_peer_is_not_blamed_for_it(tmp_path: Path) -> None:
    told(tmp_path, 0, 10.0, "RuntimeError: Connection closed by peer [127.0.0.1]:4444")
    told(tmp_path, 1, 11.0, "ValueError: no row")
    assert first_failure(tmp_path, "").rank == 1


def test_a_rank_that_was_killed_is_named_though_it_wrote_nothing(tmp_path: Path) -> None:
    told(tmp_path, 0, 10.0, "RuntimeError: Connection reset by peer")
    exits(tmp_path, r0=1, r1=-9)
    error = first_failure(tmp_path, "")
    assert error.rank == 1
    assert "SIGKILL" in error.message


def test_the_signal_by_which_torchrun_ends_the_others_blames_nobody(tmp_path: Path) -> None:
    told(tmp_path, 1, 10.0, "ValueError: no row")
    exits(tmp_path, r0=-15, r1=1)
    assert first_failure(tmp_path, "").rank == 1


def test_a_failure_that_nobody_wrote_down_shows_the_launchers_last_line(tmp_path: Path) -> None:
    error = first_failure(tmp_path, "starting\nNo module named torch\n\n")
    assert error.rank is None
    assert error.message.endswith("No module named torch")


def run_script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    for name in ("logs", "errors"):
        (tmp_path / name).mkdir()
    script = tmp_path / "train.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "cloudshift_lab.agent.bootstrap", "rank", str(tmp_path),
         str(script), "--lr", "3"],
        env={**os.environ, "RANK": "2"}, capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


def test_a_script_runs_as_main_with_its_arguments_and_its_own_log(tmp_path: Path) -> None:
    text = "import sys\nprint(__name__, sys.argv[1:])\nprint('warned', file=sys.stderr)\n"
    done = run_script(tmp_path, text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "logs/rank-2.log").read_text() == "__main__ ['--lr', '3']\nwarned\n"


def test_a_script_can_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 5\n")
    assert run_script(tmp_path, "import beside_it\nassert beside_it.VALUE == 5\n").returncode == 0


def test_a_traceback_begins_in_the_researchers_script(tmp_path: Path) -> None:
    text = "def load():\n    raise OSError('disk\\ngone')\n\nload()\n"
    assert run_script(tmp_path, text).returncode == 1
    error = first_failure(tmp_path / "errors", "")
    lines = error.traceback.splitlines()
    assert (error.rank, error.message) == (2, "OSError: disk")
    assert "train.py" in lines[1] and "line 4" in lines[1]
    assert "bootstrap" not in error.traceback and "runpy" not in error.traceback
    assert (tmp_path / "logs/rank-2.log").read_text() == error.traceback


def test_a_script_with_a_syntax_error_says_so(tmp_path: Path) -> None:
    run_script(tmp_path, "def broken(:\n")
    assert first_failure(tmp_path / "errors", "").message.startswith("SyntaxError")


def test_a_script_that_exits_by_itself_keeps_its_code(tmp_path: Path) -> None:
    assert run_script(tmp_path, "raise SystemExit(7)\n").returncode == 7
