"""The rank's line to the agent of its node: what to do, where it is, what it measured."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import time
from collections import deque
from pathlib import Path

import msgspec

from cloudshift_lab.core.home import load_clouds, store_options
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
    rows_file,
    state_file,
)
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.store import Store, open_store

GATE_POLL_S = 0.02
_MAX_ROWS = 20_000
_ROWS_PER_DATAGRAM = 64
_LAST_ROWS_S = 0.5


class Node:
    """What a rank knows of its agent.

    Args:
        node_dir: The agent's shared directory.
        job: What this attempt is.
        rank: Of this process.
    """

    def __init__(self, node_dir: Path, job: JobSpec, rank: int) -> None:
        self.node_dir = node_dir
        self.job = job
        self.rank = rank
        self._control = Control()
        self._control_stamp: tuple[int, int] | None = None
        self.rows = Rows(node_dir, rank)

    @classmethod
    def from_environment(cls, rank: int) -> Node | None:
        """The node that started this process; None for an ordinary one."""
        node_dir, job_file = os.environ.get(NODE_DIR_ENV), os.environ.get(JOB_ENV)
        if not node_dir or not job_file:
            return None
        job = from_json(Path(job_file).read_bytes(), JobSpec, what=job_file)
        return cls(Path(node_dir), job, rank)

    def control(self) -> Control:
        """The agent's newest word; one ``stat`` when there is none."""
        path = self.node_dir / CONTROL_FILE
        try:
            stat = path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns)
            if stamp != self._control_stamp:
                self._control = from_json(path.read_bytes(), Control, what=CONTROL_FILE)
                self._control_stamp = stamp
        except FileNotFoundError:
            pass  # the agent replaces the file, or has not written it yet: the last word stands
        return self._control

    def wait_at_gate(self) -> Go:
        """Until the agent says from where to train."""
        while (go := self.control().go) is None:
            time.sleep(GATE_POLL_S)
        return go

    def tell(self, state: RankState) -> None:
        """Say where this rank is."""
        replace_file(state_file(self.node_dir, self.rank), to_json(state))

    def open_store(self) -> Store:
        """The attempt's store, with the credentials of its cloud."""
        cloud = load_clouds(Path(self.job.home)).find(self.job.placement.cloud)
        return open_store(self.job.store_url, store_options(cloud))


class Rows:
    """Sends step reports to the agent; never blocks, never raises into training.

    What the agent has no time for waits here, up to a limit beyond which the oldest are dropped.
    """

    def __init__(self, node_dir: Path, rank: int) -> None:
        self._address = str(node_dir / ROWS_SOCKET)
        self._leftover = rows_file(node_dir, rank)
        self._waiting: deque[StepReport] = deque(maxlen=_MAX_ROWS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0)
        atexit.register(self.close)

    def add(self, row: StepReport) -> None:
        """Send a row, with those that wait before it."""
        self._waiting.append(row)
        self._send()

    def close(self) -> None:
        """Give the agent half a second to take the last rows, then leave them in a file for it."""
        until = time.monotonic() + _LAST_ROWS_S
        while not self._send() and time.monotonic() < until:
            time.sleep(0.01)
        if self._waiting:
            with contextlib.suppress(OSError):
                replace_file(self._leftover, to_json(list(self._waiting)))
        self._waiting.clear()
        self._socket.close()

    def _send(self) -> bool:
        """Send what waits; False when some of it still does."""
        while self._waiting:
            part = [self._waiting[i] for i in range(min(len(self._waiting), _ROWS_PER_DATAGRAM))]
            try:
                self._socket.sendto(msgspec.json.encode(part), self._address)
            except OSError:
                return False
            for _ in part:
                self._waiting.popleft()
        return True
