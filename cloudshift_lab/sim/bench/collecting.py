"""A conductor that can be killed and started again within a moment, and a run to send rows of."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from cloudshift_lab.conductor import daemon, discovery
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.records import (
    AttemptStarted,
    RunCreated,
    RunEnded,
    RunRecord,
    Settled,
)
from cloudshift_lab.core.errors import CloudshiftError, Exhausted
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec, RunSpec
from cloudshift_lab.core.world import REAL_WORLD

T = TypeVar("T")
RUN_ID = "run-1"
DATABASE = "telemetry.duckdb"
PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes that have imported everything already."""
_START_LIMIT_S = 60.0
_POLL_S = 0.01


def preload() -> None:
    """Import what the processes need once, in the one that they are forked from."""
    PROCESSES.set_forkserver_preload(["cloudshift_lab.sim.bench.telemetry"])


def make_run(home: Path, *, num_hosts: int, ranks_per_host: int) -> JobSpec:
    """Write down a run that has ended, so that nobody looks for its processes."""
    job = JobSpec(
        run_id=RUN_ID, generation=1, owner="bench",
        placement=Placement("local", "here", "this-machine", num_hosts, ranks_per_host),
        store_url=f"file://{home}/store", script="", home=str(home), workdir=str(home), seed=0,
        conductor_home=str(home),
    )  # fmt: skip
    at = REAL_WORLD.now()
    first = AttemptStarted(
        job=job, at=at, price_micro_usd_per_h=0, price_source="none", simulated=True
    )
    folder = home / "runs" / RUN_ID
    folder.mkdir(parents=True)
    created = RunCreated(
        run_id=RUN_ID, spec=RunSpec(name="emulated", script=""), at=at, first=first
    )
    record = RunRecord.create(Journal(folder / "journal.jsonl"), created)
    record.keep(RunEnded(state="finished", at=at))
    record.keep(Settled(at=at))
    return job


class Collector:
    """The conductor's own process over one state directory; use as a context manager.

    Args:
        home: The state directory.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: BaseProcess | None = None

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def start(self) -> tuple[str, str]:
        """Start it; its URL and token once it answers.

        Raises:
            Exhausted: It did not come up.
        """
        self._process = PROCESSES.Process(target=_conduct, args=(str(self._home),), daemon=True)
        self._process.start()
        deadline = REAL_WORLD.monotonic() + _START_LIMIT_S
        while True:
            found = discovery.find_daemon(self._home)
            if found is not None and found.pid == self._process.pid:
                return found.url, found.token
            if REAL_WORLD.monotonic() > deadline or not self._process.is_alive():
                raise Exhausted(f"the conductor did not come up; see {self._home}")
            REAL_WORLD.sleep(_POLL_S)

    def kill(self) -> None:
        """``kill -9``; returns once it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.join()
        self._process = None

    def cpu_s(self) -> float:
        """Processor time it has used since its start, seconds, its threads' included."""
        assert self._process is not None
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """What it holds in memory."""
        assert self._process is not None
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Worker(Generic[T]):
    """A process that works until it is told to stop, and then answers; use as a context manager.

    Args:
        work: Called with ``args``, an event that says stop, and a pipe for one answer.
    """

    def __init__(self, work: Callable[..., None], *args: Any) -> None:
        self._stop = PROCESSES.Event()
        self._answer, theirs = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=work, args=(*args, self._stop, theirs))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._answer.close()

    def tell_to_stop(self) -> None:
        """Without waiting for its answer."""
        self._stop.set()

    def answer(self) -> T:
        """What it found, once it has stopped.

        Raises:
            CloudshiftError: It died.
        """
        try:
            found: T = self._answer.recv()
        except EOFError as error:
            raise CloudshiftError("a process of the benchmark died; see its traceback") from error
        return found


def _conduct(home: str) -> None:
    os.umask(0o077)
    os._exit(daemon.main(["--home", home]))
