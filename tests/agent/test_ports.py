"""Two agents of one machine never meet at the same port, also before anybody listens there."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudshift_lab.agent.ports import PortClaim

LOOPBACK = "127.0.0.1"
OTHER = """
import sys
from pathlib import Path
from cloudshift_lab.agent.ports import PortClaim
claim = PortClaim("127.0.0.1", lambda: 0.5, folder=Path(sys.argv[1]))
print(claim.take(), flush=True)
sys.stdin.read()
"""


def draws(*numbers: float) -> Callable[[], float]:
    left: Iterator[float] = iter(numbers)
    return lambda: next(left)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def taken_by(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_port_that_another_agent_has_chosen_is_not_chosen_again(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    theirs = taken_by(other)
    ours = PortClaim(LOOPBACK, draws(0.5, 0.6), folder=tmp_path).take()
    assert ours != theirs


def test_an_agent_that_has_ended_holds_no_port(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    theirs = taken_by(other)
    other.kill()
    other.wait()
    assert PortClaim(LOOPBACK, draws(0.5), folder=tmp_path).take() == theirs


def test_another_start_gets_another_port(tmp_path: Path) -> None:
    claim = PortClaim(LOOPBACK, draws(0.5, 0.5, 0.6), folder=tmp_path)
    assert claim.take() != claim.take()


def test_a_port_where_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    port = PortClaim(LOOPBACK, draws(0.4), folder=tmp_path).take()
    with socket.create_server((LOOPBACK, port)):
        assert PortClaim(LOOPBACK, draws(0.4, 0.6), folder=tmp_path).take() != port


def test_without_a_place_for_the_shared_file_a_free_port_is_found_all_the_same(
    tmp_path: Path,
) -> None:
    nowhere = tmp_path / "no" / "such" / "folder"
    assert not nowhere.exists()
    assert PortClaim(LOOPBACK, draws(0.5), folder=nowhere).take() > 0
