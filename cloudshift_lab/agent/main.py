"""The agent's process: everything real around ``NodeAgent``, and the loop that ticks it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cloudshift_lab.agent.bootstrap import LOGS
from cloudshift_lab.agent.follower import Follower
from cloudshift_lab.agent.leading import LedRanks, LedSaver, prove_with
from cloudshift_lab.agent.node import NodeAgent
from cloudshift_lab.agent.nodes import Line
from cloudshift_lab.agent.notices import MachineNotices, notices_of
from cloudshift_lab.agent.rows import ConductorPost, RowReceiver, RowShipper
from cloudshift_lab.agent.shm import NodeDir
from cloudshift_lab.agent.stores import open_job_store, open_other_store, open_source_store
from cloudshift_lab.agent.torchrun import TorchrunRanks
from cloudshift_lab.checkpoint.collecting import CollectorProcess
from cloudshift_lab.checkpoint.fetch import usable_cpus
from cloudshift_lab.checkpoint.fingerprint import differing
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import SaverJob, read_slot
from cloudshift_lab.checkpoint.share import Staged
from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.lineage import NOTICES_ENV
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import StepReport
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.engines.local import EXIT_FILE, LOCK_ENV, READY_FILE, write_handle
from cloudshift_lab.engines.process import process_start_time
from cloudshift_lab.storage.store import Store
from cloudshift_lab.storage.transfer import TransferOptions
from cloudshift_lab.telemetry.spool import Sender

TICK_S = 0.05
WATCH_DEADLINE_S = 3.0
SAVER_LOG = "saver.log"
COLLECTOR_LOG = "collector.log"


class AgentProcess:
    """Owns the node directory, the ranks, the saver and the telemetry of one attempt.

    Args:
        job_file: The job as JSON.
        world: Clock.
    """

    def __init__(self, job_file: Path, world: World = REAL_WORLD) -> None:
        self._world = world
        self._job = job = from_json(job_file.read_bytes(), JobSpec, what=str(job_file))
        (Path(job.workdir) / LOGS).mkdir(parents=True, exist_ok=True)
        store = open_job_store(job)
        script = place_script(job)
        self._node_dir = NodeDir(job.home, job.run_id, job.generation, node=job.node)
        self._ranks = TorchrunRanks(
            job, script, self._node_dir.path, world, ship_rows=self._ship_rows
        )
        self._shipper = RowShipper(_sender(job, store, world), job)
        self._receiver = RowReceiver(self._node_dir.path, self._take)
        leads_others = job.node == 0 and job.placement.nodes > 1
        self._line = Line(store, job, world) if leads_others else None
        self._notices, trouble = self._listener()
        os.environ[NOTICES_ENV] = " ".join(number.name for number in self._notices.signals)
        self._agent = self._follower(store) if job.node > 0 else self._leader(store)
        if trouble:
            self._agent.note("metadata", trouble)
        self._asked_to_stop = False

    def _leader(self, store: Store) -> NodeAgent:
        job, line = self._job, self._line
        saver = saver_of(job, self._node_dir.path)
        return NodeAgent(
            job,
            store=store,
            source_store=open_source_store(job),
            watch_store=open_source_store(job, deadline_s=WATCH_DEADLINE_S),
            world=self._world,
            ranks=self._ranks if line is None else LedRanks(self._ranks, line, self._world),
            saver=saver if line is None else LedSaver(saver, line),
            collector=collector_of(job),
            prove=self._prove,
            open_store=partial(open_other_store, job),
            transfers=TransferOptions(),
        )

    def _follower(self, store: Store) -> Follower:
        saver = saver_of(self._job, self._node_dir.path)
        return Follower(
            self._job, store=store, world=self._world, ranks=self._ranks, saver=saver,
            prove=self._prove_told,
        )  # fmt: skip

    def _listener(self) -> tuple[MachineNotices, str]:
        """What says that this machine goes; of settings that make no sense, what is wrong."""
        followers = None if self._line is None else self._line.followers
        try:
            return notices_of(self._job, os.environ, self._world, followers=followers), ""
        except UsageError as error:
            return MachineNotices({}, None, self._world, followers=followers), error.message

    def run(self) -> int:
        """Tick until the attempt has ended; 0 unless it failed or was fenced."""
        for number in (signal.SIGTERM, *self._notices.signals):
            signal.signal(number, self._on_signal)
        _make_findable(self._job)
        self._notices.start()
        try:
            while not self._agent.finished:
                if self._asked_to_stop:
                    self._agent.stop()
                if (complaint := self._shipper.complaint()) is not None:
                    self._agent.note("telemetry", complaint)
                self._agent.tick()
                self._notices.tick(self._agent)
                if self._notices.may_leave(self._agent):
                    self._agent.leave()
                self._world.sleep(TICK_S)
        finally:
            self._notices.close()
            self._ranks.kill()
            if self._line is not None:
                self._line.close()
            self._receiver.close()
            self._shipper.close()
            self._node_dir.remove()
        return 1 if self._agent.status.state in ("failed", "fenced") else 0

    def _take(self, reports: list[StepReport]) -> None:
        """Only what is the run's own leaves this machine: a rehearsed step was another's first."""
        self._ranks.take(reports)
        self._shipper.add([report for report in reports if not report.rehearsed])

    def _prove(self, step: int, sealed: Checkpoint) -> tuple[str, ...]:
        """What the ranks, which all wait meanwhile, have staged otherwise than sealed."""
        own = partial(self._prove_own, step, sealed)
        if self._line is None:
            return own()
        return prove_with(self._line, sealed, own, self._world, talk=self._agent.talk)

    def _prove_own(self, step: int, sealed: Checkpoint) -> tuple[str, ...]:
        staged = [read_slot(self._node_dir.path, rank, step) for rank in ranks_of(self._job)]
        return compare(staged, sealed, talk=self._agent.talk)

    def _prove_told(self, step: int, key: str, digest: str) -> tuple[str, ...]:
        source = open_source_store(self._job)
        if source is None:
            return ("everything: this node knows of no source to compare with",)
        sealed = open_checkpoint(source, self._job.run_id, key, digest=digest)
        return self._prove_own(step, sealed)

    def _ship_rows(self) -> None:
        self._receiver.drain()
        self._shipper.flush()

    def _on_signal(self, number: int, _frame: object) -> None:
        """A notice where the cloud says so; else somebody asks for a last save and the end."""
        if not self._notices.signalled(number):
            self._asked_to_stop = True


def _make_findable(job: JobSpec) -> None:
    """Write our handle in case our submitter died before it could, then give up its lock."""
    started = process_start_time(os.getpid())
    assert started is not None, "this process runs"
    write_handle(job, os.getpid(), started)
    (Path(job.workdir) / READY_FILE).touch()
    if (lock := os.environ.pop(LOCK_ENV, None)) is not None:
        os.close(int(lock))


def place_script(job: JobSpec) -> Path:
    """The script as a file; ``job.script`` may be its path or, from a notebook, its text.

    Raises:
        UsageError: There is no such file.
    """
    if "\n" in job.script:
        path = Path(job.workdir) / "script.py"
        path.write_text(job.script)
        return path
    path = Path(job.script)
    if not path.is_file():
        raise UsageError(f"there is no script at {path}; give the path of a Python file")
    return path


def saver_of(job: JobSpec, node_dir: Path) -> SaverProcess:
    """The saver of one attempt, started: its imports take longer than the ranks' first steps."""
    return SaverProcess(saver_job_of(job), node_dir, Path(job.workdir) / LOGS / SAVER_LOG)


def collector_of(job: JobSpec) -> CollectorProcess:
    """The collector of one attempt."""
    return CollectorProcess(saver_job_of(job), Path(job.workdir) / LOGS / COLLECTOR_LOG)


def saver_job_of(job: JobSpec) -> SaverJob:
    """Which store, and whose steps: all that saving and collecting need."""
    placement = job.placement
    return SaverJob(
        run_id=job.run_id,
        generation=job.generation,
        world_size=placement.world_size,
        ranks=ranks_of(job),
        store_url=job.store_url,
        home=job.home,
        cloud=placement.cloud,
    )


def compare(
    staged: Sequence[Staged], sealed: Checkpoint, *, talk: Callable[[], None]
) -> tuple[str, ...]:
    """What was staged here otherwise than sealed.

    Args:
        staged: The shares of this node's ranks.
        sealed: The step to compare with.
        talk: Called often meanwhile: whoever watches us hears that we live.
    """
    return differing(staged, sealed, threads=usable_cpus(), progress=lambda _bytes: talk())


def ranks_of(job: JobSpec) -> tuple[int, ...]:
    """The ranks of one node."""
    num_ranks = job.placement.ranks_per_node
    return tuple(range(job.node * num_ranks, (job.node + 1) * num_ranks))


def _sender(job: JobSpec, store: Store, world: World) -> Sender:
    post = ConductorPost(Path(job.conductor_home), job.run_id) if job.conductor_home else None
    return Sender(post, store, job.run_id, generation=job.generation, nonce=world.new_id("batch"))


def main(arguments: Sequence[str]) -> int:
    """Run the agent of the job in the file given; the exit code is the attempt's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the notebook is not for us
    os.umask(0o077)
    job_file = Path(arguments[0])
    try:
        code = AgentProcess(job_file).run()
    except CloudshiftError as error:
        print(f"cloudshift agent: {error.message}", file=sys.stderr)
        code = 2
    (job_file.parent / EXIT_FILE).write_bytes(to_json(code))
    return code
