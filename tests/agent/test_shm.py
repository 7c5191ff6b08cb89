"""The shared memory of an agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudshift_lab.agent.shm import NodeDir
from cloudshift_lab.core.errors import Conflict


def test_two_state_directories_may_both_have_a_run_1(tmp_path: Path) -> None:
    ours = NodeDir("/somewhere/a", "run-1", 1, base=tmp_path)
    theirs = NodeDir("/somewhere/b", "run-1", 1, base=tmp_path)
    assert ours.path != theirs.path
    ours.remove()
    assert theirs.path.is_dir()
    theirs.remove()


def test_one_attempt_has_one_agent(tmp_path: Path) -> None:
    first = NodeDir("/somewhere/a", "run-1", 1, base=tmp_path)
    with pytest.raises(Conflict, match="run run-1, generation 1 has an agent here"):
        NodeDir("/somewhere/a", "run-1", 1, base=tmp_path)
    first.remove()
    NodeDir("/somewhere/a", "run-1", 1, base=tmp_path).remove()
