"""A node directory that stands in for an agent around this very process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.checkpoint import seal, write_rank
from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import (
    CONTROL_FILE,
    JOB_ENV,
    NODE_DIR_ENV,
    ROWS_SOCKET,
    Control,
    Go,
    RankState,
    StepReport,
    replace_file,
    state_file,
)
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.store import open_store


class AroundUs:
    """What an agent would do, by hand: says things, saves what is staged, takes the rows."""

    def __init__(self, root: Path) -> None:
        self.node_dir = root / "node"
        self.node_dir.mkdir()
        self.job = JobSpec(
            run_id="run-t", generation=1, owner="o",
            placement=Placement("local", "here", "this-machine", ranks_per_node=1),
            store_url=f"file://{root}/store", script="train.py", home=str(root / "home"),
            workdir=str(root), save_policy="3", seed=0,
        )  # fmt: skip
        self.job_file = root / "job.json"
        self.job_file.write_bytes(to_json(self.job))
        self.store = open_store(self.job.store_url)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.node_dir / ROWS_SOCKET))
        self._socket.setblocking(False)
        self.control = Control(go=Go())
        self.say()

    def say(self, **changes: object) -> None:
        self.control = msgspec.structs.replace(self.control, **changes)
        replace_file(self.node_dir / CONTROL_FILE, to_json(self.control))

    def save(self, step: int) -> Go:
        """Put the staged step into the store; the word by which it is restored."""
        staged = read_slot(self.node_dir, 0, step)
        written = write_rank(self.store, self.job.run_id, staged, generation=1)
        sealed = seal(
            self.store, self.job.run_id, step, generation=1, world_size=1, written=[written]
        )
        return Go(step, sealed.manifest_key, sealed.manifest_digest)

    def state(self) -> RankState:
        return from_json(state_file(self.node_dir, 0).read_bytes(), RankState)

    def rows(self) -> list[StepReport]:
        found: list[StepReport] = []
        while True:
            try:
                found += msgspec.json.decode(self._socket.recv(1 << 18), type=list[StepReport])
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AroundUs]:
    agent = AroundUs(tmp_path)
    monkeypatch.setenv(NODE_DIR_ENV, str(agent.node_dir))
    monkeypatch.setenv(JOB_ENV, str(agent.job_file))
    yield agent
    agent.close()
