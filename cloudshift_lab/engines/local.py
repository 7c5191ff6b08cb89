"""The engine of this machine: each agent is a process in a session of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import Exhausted, Unavailable, UsageError
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.engines.engine import Handle, Observation, machine_of, num_usable
from cloudshift_lab.engines.logs import AGENT_LOG, last_lines
from cloudshift_lab.engines.process import environment, has_ended, process_start_time, reap

HANDLE_FILE = "handle.json"
JOB_FILE = "job.json"
EXIT_FILE = "exit.json"
READY_FILE = "ready"
LOCK_FILE = "submit.lock"
LOCK_ENV = "CLOUDSHIFT_SUBMIT_LOCK"
NODES_ENV = "CLOUDSHIFT_LOCAL_NODES"
_POLL_S = 0.05
_KILL_WAIT_S = 10.0
_FOLLOWER_GRACE_S = 5.0


class LocalEngine:
    """Implements ``Engine`` with processes that outlive the kernel, the notebook and the conductor.

    Each node of an attempt is an agent process of its own; its handle is that of node 0, which
    leads the others. They end by themselves when it has ended, and with it when it is stopped.

    Args:
        home: State directory; attempts live under ``runs/<run>/attempts/<generation>``, nodes
            after the first in ``node-<n>`` below that.
        world: Clock and sleep.
        max_nodes: Nodes of an attempt that can be had here, at most; None: as
            ``CLOUDSHIFT_LOCAL_NODES`` says, else as many as are asked for.
    """

    def __init__(
        self, home: Path, world: World = REAL_WORLD, *, max_nodes: int | None = None
    ) -> None:
        self._home = home
        self._world = world
        self._max_nodes = max_nodes

    def submit(self, job: JobSpec) -> Handle:
        return self._start_all(job, only_if_never_started=True)

    def revive(self, job: JobSpec) -> Handle:
        """Start again what is gone; without the node that leads, every node.

        What followed a leader that is gone is about to end, or belongs to another number of nodes.
        """
        leader = self.find(job.run_id, job.generation)
        if leader is not None and self.observe(leader).is_gone:
            self._stop_followers(leader, _FOLLOWER_GRACE_S)
        return self._start_all(job, only_if_never_started=False)

    def find(self, run_id: str, generation: int, node: int = 0) -> Handle | None:
        """Of one node; the others than the first are of no concern to a conductor."""
        return self._find(self.workdir(run_id, generation, node))

    def _find(self, workdir: Path) -> Handle | None:
        path = workdir / HANDLE_FILE
        try:
            return from_json(path.read_bytes(), Handle, what=str(path))
        except FileNotFoundError:
            return None

    def observe(self, handle: Handle) -> Observation:
        workdir = Path(handle.workdir)
        if not has_ended(handle.pid, handle.start_time):
            ready = (workdir / READY_FILE).exists()
            return Observation("running" if ready else "starting")
        returncode = reap(handle.pid)
        told = _exit_code(workdir / EXIT_FILE)
        if told is not None:
            return Observation("exited", told)
        return Observation("lost", returncode)

    def stop(self, handle: Handle, grace_s: float) -> Observation:
        """The node that leads first: its last save needs the others."""
        self._stop(handle, grace_s)
        self._stop_followers(handle, min(grace_s, _FOLLOWER_GRACE_S))
        return self.observe(handle)

    def _stop_followers(self, leader: Handle, grace_s: float) -> None:
        for workdir in sorted(Path(leader.workdir).glob("node-*")):
            if (follower := self._find(workdir)) is not None:
                self._stop(follower, grace_s)

    def _stop(self, handle: Handle, grace_s: float) -> None:
        if not has_ended(handle.pid, handle.start_time):
            with contextlib.suppress(ProcessLookupError):
                os.kill(handle.pid, signal.SIGTERM)
            if not self._wait_end(handle, grace_s):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(handle.pid, signal.SIGKILL)
                self._wait_end(handle, _KILL_WAIT_S)

    def logs(self, handle: Handle, rank: int | None = None, tail: int = 200) -> str:
        workdir = Path(handle.workdir)
        folders = [workdir / "logs", *sorted(workdir.glob("node-*/logs"))]
        return last_lines(folders, rank, tail)

    def workdir(self, run_id: str, generation: int, node: int = 0) -> Path:
        """Where one node of an attempt keeps its files on this machine."""
        attempt = self._home / "runs" / run_id / "attempts" / str(generation)
        return attempt / f"node-{node}" if node else attempt

    # -- starting ---------------------------------------------------------------------------------

    def _start_all(self, job: JobSpec, *, only_if_never_started: bool) -> Handle:
        """Start the agents of all nodes that there are; the leader's handle."""
        handles = [
            self.start_node(
                msgspec.structs.replace(job, node=node),
                only_if_never_started=only_if_never_started,
            )
            for node in range(self._num_nodes(job))
        ]
        return handles[0]

    def start_node(self, job: JobSpec, *, only_if_never_started: bool = True) -> Handle:
        """Start the agent of one node, unless it runs, or was ever started and that is enough."""
        if (known := self._known(job, only_if_never_started=only_if_never_started)) is not None:
            return known
        workdir = self.workdir(job.run_id, job.generation, job.node)
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
        with _locked(workdir / LOCK_FILE) as lock:
            known = self._known(job, only_if_never_started=only_if_never_started)
            if known is not None:
                return known
            job = msgspec.structs.replace(job, workdir=str(workdir))
            return self._spawn(job, workdir, lock)

    def _num_nodes(self, job: JobSpec) -> int:
        told = os.environ.get(NODES_ENV)
        limit = self._max_nodes
        if limit is None and told is not None and told.isdecimal():
            limit = int(told)
        if limit is None:
            return job.placement.nodes
        usable = num_usable(job, max(1, limit))
        if not usable:
            raise Exhausted(
                f"{job.placement.target} has no machine left but {', '.join(job.exclude)}, which "
                f"{job.run_id} must not use; choose another place"
            )
        return min(usable, job.placement.nodes)

    def _known(self, job: JobSpec, *, only_if_never_started: bool) -> Handle | None:
        known = self._find(self.workdir(job.run_id, job.generation, job.node))
        if known is None or only_if_never_started:
            return known
        return None if self.observe(known).is_gone else known

    def _spawn(self, job: JobSpec, workdir: Path, lock: int) -> Handle:
        """Start the agent and hand it the lock, which it keeps until its handle is written.

        So a submitter that dies right here leaves no agent that a later one would not find.
        """
        for name in (READY_FILE, EXIT_FILE):
            (workdir / name).unlink(missing_ok=True)
        write_private(workdir / JOB_FILE, to_json(job))
        try:
            with (workdir / "logs" / AGENT_LOG).open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "cloudshift_lab.agent", str(workdir / JOB_FILE)],
                    cwd=workdir,
                    env={**environment(), LOCK_ENV: str(lock)},
                    pass_fds=(lock,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise UsageError(f"no agent can be started here ({error}); mend the machine") from error
        started = process_start_time(process.pid)
        if started is None:
            raise Unavailable(f"the agent ended at once; see {workdir / 'logs' / AGENT_LOG}")
        process.returncode = 0  # it is ours to watch through its handle, not through this object
        return write_handle(job, process.pid, started)

    def _wait_end(self, handle: Handle, limit_s: float) -> bool:
        until = self._world.monotonic() + limit_s
        while not has_ended(handle.pid, handle.start_time):
            if self._world.monotonic() >= until:
                return False
            self._world.sleep(_POLL_S)
        return True


def write_handle(job: JobSpec, pid: int, start_time: str) -> Handle:
    """Make a started agent findable; its submitter and the agent itself both write the same."""
    handle = Handle(
        job.run_id, job.generation, pid, start_time, job.workdir, machine=machine_of(job)
    )
    write_private(Path(job.workdir) / HANDLE_FILE, to_json(handle))
    return handle


def _exit_code(path: Path) -> int | None:
    try:
        return from_json(path.read_bytes(), int, what=str(path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """One submit of an attempt at a time, also between processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
