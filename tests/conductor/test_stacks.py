"""Ranks of this machine by their environment, and their stacks by py-spy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudshift_lab.conductor.stacks import main_thread, rank_pids, rank_stacks
from cloudshift_lab.core.staging import JOB_ENV

DUMP = """Process 7: python train.py
Python v3.11.7 (/usr/bin/python3.11)

Thread 9 (idle): "pin-memory"
    poll (selectors.py:415)
Thread 7 (idle): "MainThread"
    all_reduce (torch/distributed/distributed_c10d.py:2501)
    <module> (train.py:10)
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that look like ranks of the attempt in ``tmp_path``."""
    told = {**os.environ, JOB_ENV: str(tmp_path / "job.json")}
    started = [
        subprocess.Popen(["sleep", "60"], env={**told, "RANK": str(rank)}) for rank in range(2)
    ]  # fmt: skip
    yield started
    for each in started:
        each.kill()
        each.wait()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_ranks_of_an_attempt_are_found_and_no_others(
    ranks: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    assert rank_pids(tmp_path) == {rank: each.pid for rank, each in enumerate(ranks)}
    assert rank_pids(tmp_path / "other") == {}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_each_rank_is_asked_for_its_stack(
    ranks: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    program = tmp_path / "py-spy"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"if sys.argv[3] == '{ranks[1].pid}': sys.exit(1)\nprint('''{DUMP}''')\n"
    )
    program.chmod(0o700)
    found = rank_stacks(tmp_path, str(program))
    assert list(found) == [0]  # the other one cannot be looked at
    assert found[0].splitlines()[0].strip().startswith("all_reduce")
    assert rank_stacks(tmp_path, str(tmp_path / "none")) == {}


def test_only_the_main_thread_counts() -> None:
    assert "poll" not in main_thread(DUMP)
    assert main_thread("") == ""
