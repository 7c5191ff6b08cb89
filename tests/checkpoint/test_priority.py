"""Work in the background steps back as far as its container lets it, and never fails for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

STEP_BACK = "from cloudshift_lab.checkpoint.priority import step_back; "
TELL = "import os; print(os.nice(0), open('/proc/self/oom_score_adj').read().strip())"


def told(code: str, before: str = "true") -> str:
    """What a process of its own prints after something was done to it."""
    command = ["sh", "-c", f'{before}; exec "$0" -c "$1"', sys.executable, code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_process_steps_back_for_the_processor_and_for_memory() -> None:
    assert told(f"{STEP_BACK}step_back(); {TELL}") == "10 500"


def test_what_the_container_set_higher_stays() -> None:
    before = "echo 900 > /proc/$$/oom_score_adj; renice -n 15 -p $$ >/dev/null"
    assert told(f"{STEP_BACK}step_back(); {TELL}", before) == "15 900"


def test_a_container_that_forbids_it_all_is_no_reason_to_end(tmp_path: Path) -> None:
    for name in ("oom_score_adj", "autogroup"):
        (tmp_path / name).mkdir()  # which nobody can read or write as a file
    code = f"import pathlib; {STEP_BACK}step_back(pathlib.Path({str(tmp_path)!r})); print('alive')"
    assert told(code) == "alive"
