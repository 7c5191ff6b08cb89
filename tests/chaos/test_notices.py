"""A machine is taken away under real ranks: an emulator says so as each provider would.

Everything is real but the news: the daemon, the agent, torchrun and its ranks, the HTTP requests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.orders import AgentStatus, status_key
from cloudshift_lab.core.placement import Cloud, Clouds, NoticeDialect, Notices, Offer
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines.local import LocalEngine
from cloudshift_lab.sim.bed import Bed
from cloudshift_lab.sim.metadata import MetadataServer, Preempt, end_machine, preempt
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store, open_cloud_store

SCRIPT = """
import time
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from cloudshift_lab.training import Session

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 8)))
optimizer = torch.optim.AdamW(model.parameters())
session = Session(model=model, optimizer=optimizer)
for step in session.steps(1_000_000):
    loss = model(torch.full((4, 256), float(step % 7) + dist.get_rank())).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("did", step, flush=True)
    time.sleep(0.02)
    session.step(loss=loss, tokens=4)
dist.destroy_process_group()
"""
CLOUD, THERE = "spot", "steady"


@dataclass
class Stage:
    """One run on machines that can be taken away."""

    home: Path
    bed: Bed
    server: MetadataServer
    cloud: Cloud
    run_id: str = ""

    def train(self, *, nodes: int = 1, ranks: int = 2) -> None:
        spec = RunSpec(
            name="spot", script=SCRIPT, target=CLOUD, nodes=nodes, ranks_per_node=ranks,
            save_policy="1000000", restart="never",
        )  # fmt: skip
        self.run_id = self.bed.train(spec).run_id
        self.bed.reach(self.run_id, 20)

    @property
    def store(self) -> Store:
        return open_cloud_store(self.cloud)

    def status(self, generation: int = 1) -> AgentStatus | None:
        try:
            data = self.store.get(status_key(self.run_id, generation))
        except NotFound:
            return None
        return from_json(data, AgentStatus)

    def preempt(self, in_s: float, *, node: str = "") -> float:
        """Have its machines taken away; when, in wall-clock seconds."""
        machine = f"{CLOUD}.{self.run_id}.1.{node}"
        events = preempt(self.server.port, Preempt(in_s=in_s, machine=machine))
        return min(event.deadline for event in events)

    def drained(self) -> AgentStatus:
        def found() -> AgentStatus | None:
            status = self.status()
            return status if status is not None and status.state == "drained" else None

        return self.bed.wait(found, "the drained run", limit_s=120.0)

    def view(self, word: str) -> RunView:
        """The run once its notice says this."""

        def found() -> RunView | None:
            view = self.bed.client.run(self.run_id)
            return view if word in view.notice else None

        return self.bed.wait(found, f"'{word}' in the run's notice", limit_s=60.0)

    def ended(self) -> RunView:
        def found() -> RunView | None:
            view = self.bed.client.run(self.run_id)
            return view if view.state == "lost" else None

        return self.bed.wait(found, "the end", limit_s=60.0)

    def running(self) -> RunView | None:
        view = self.bed.client.run(self.run_id)
        return view if view.state == "running" else None

    def sealed(self) -> LogRecord:
        """The newest commit; its manifest can be read whole."""
        record = RunLog(self.store, self.run_id, REAL_WORLD).sync().last_commit
        assert record is not None and record.step is not None
        key, digest = str(record.manifest_key), str(record.manifest_digest)
        assert open_checkpoint(self.store, self.run_id, key, digest=digest).step == record.step
        return record

    def steps_of(self, rank: int, *, node: int = 0, generation: int = 1) -> list[int]:
        """Every step that a rank of this attempt has done, in order."""
        workdir = LocalEngine(self.home).workdir(self.run_id, generation, node)
        lines = (workdir / "logs" / f"rank-{rank}.log").read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("did ")]

    def goes_on(self, after: int) -> None:
        """A later attempt, or this one again, does the very next step, and more."""
        self.bed.reach(self.run_id, after + 5)


@contextmanager
def staged(
    tmp_path: Path, dialect: NoticeDialect, signals: dict[str, float] | None = None
) -> Iterator[Stage]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with MetadataServer() as server:
        offer = Offer(cloud=CLOUD, region="a", instance_type="m", price_micro_usd_per_h=1_000_000)
        url = f"{server.url}/machine/{CLOUD}.{{machine}}"
        cloud = Cloud(
            name=CLOUD, title="spot machines that are played", simulated=True, offers=(offer,),
            store_url=f"file://{tmp_path}/store",
            notices=Notices(dialect, url, signals=signals or {}),
        )  # fmt: skip
        there = Cloud(
            name=THERE, title="machines that stay", simulated=True, store_url=f"file://{tmp_path}/b",
            offers=(Offer(THERE, "b", "m", price_micro_usd_per_h=1_000_000),),
        )  # fmt: skip
        save_clouds(home, Clouds(clouds=(cloud, there)))
        with Bed(home) as bed:
            yield Stage(home, bed, server, cloud)


@pytest.mark.parametrize(("dialect", "in_s"), [("aws", 120.0), ("gcp", 30.0), ("azure", 30.0)])
def test_all_ranks_stop_after_the_same_step_which_is_durable_before_the_machine_goes(
    tmp_path: Path, dialect: NoticeDialect, in_s: float
) -> None:
    with staged(tmp_path, dialect) as stage:
        stage.train()
        deadline = stage.preempt(in_s)
        status = stage.drained()
        assert time.time() < deadline
        step = stage.sealed().step
        assert status.committed_step == step
        assert stage.steps_of(0)[-1] == stage.steps_of(1)[-1] == step
        assert "SIMULATED" in status.notice_from
        view = stage.view(f"step {step} is saved")
        assert f"cloudshift migrate {stage.run_id} --to" in view.notice
        assert f"cloudshift resume {stage.run_id}" in view.notice
        assert view.notice_until == pytest.approx(deadline, abs=5.0)
        if dialect == "azure":
            ready = stage.bed.wait(
                lambda: stage.server.machines.state().events[0].started or None,
                "the answer to Azure",
            )
            assert ready == (f"{CLOUD}.{stage.run_id}.1.0",)


def test_a_machine_that_is_spared_trains_on_with_the_very_next_step(tmp_path: Path) -> None:
    with staged(tmp_path, "aws") as stage:
        stage.train()
        stage.preempt(3.0)
        step = stage.drained().committed_step
        assert step is not None
        stage.goes_on(step)
        steps = stage.steps_of(0)
        assert steps == list(range(1, len(steps) + 1)), "none is left out or done twice"
        view = stage.bed.wait(stage.running, "the agent to say so")
        assert view.notice_until is None


def test_a_machine_that_goes_leaves_a_run_that_is_continued_without_a_lost_step(
    tmp_path: Path,
) -> None:
    with staged(tmp_path, "gcp") as stage:
        stage.train()
        stage.preempt(30.0)
        step = stage.drained().committed_step
        assert step is not None
        stage.view("is saved")
        assert "killed" in end_machine(stage.home, f"{stage.run_id}.1.0")
        view = stage.ended()
        assert f"taken away, as had been said [simulated] (step {step} is saved)" in str(view.error)
        assert f"cloudshift resume {stage.run_id}" in str(view.error)
        stage.bed.client.resume(stage.run_id)
        stage.goes_on(step)
        assert stage.steps_of(0, generation=2)[0] == step + 1


def test_a_move_whose_source_goes_gets_the_run_over_without_a_lost_step(tmp_path: Path) -> None:
    with staged(tmp_path, "gcp") as stage:
        stage.train()
        move = stage.bed.client.migrate(stage.run_id, THERE, closing="copy", rehearse=0)
        stage.bed.approve(move, "tester")
        stage.preempt(30.0)
        ended = stage.bed.end_of(move.migration_id)
        sealed, source = ended.sealed_step, stage.status()
        assert ended.phase == "source_retired", ended.error
        assert sealed is not None and source is not None
        assert "SIMULATED" in source.notice_from
        stage.goes_on(sealed)
        assert stage.steps_of(0)[-1] == sealed
        assert stage.steps_of(0, generation=2)[0] == sealed + 1


def descendants(pid: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += descendants(int(child))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs to find processes")
@pytest.mark.parametrize(("name", "reaches_all"), [("SIGTERM", False), ("SIGUSR1", True)])
def test_a_signal_with_grace_saves_the_newest_step_and_the_process_leaves_in_time(
    tmp_path: Path, name: str, reaches_all: bool
) -> None:
    """Kubernetes tells the first process, Slurm every one of the step."""
    with staged(tmp_path, "none", {name: 30.0}) as stage:
        stage.train()
        handle = LocalEngine(stage.home).find(stage.run_id, 1)
        assert handle is not None
        began = time.monotonic()
        for pid in descendants(handle.pid) if reaches_all else [handle.pid]:
            os.kill(pid, signal.Signals[name])
        view = stage.ended()
        assert time.monotonic() - began < 30.0
        step = stage.sealed().step
        assert stage.steps_of(0)[-1] == stage.steps_of(1)[-1] == step
        assert f"taken away, as had been said (step {step} is saved)" in str(view.error)
        stage.bed.client.resume(stage.run_id)
        stage.goes_on(step or 0)


def test_the_end_of_one_node_stops_the_ranks_of_all_after_the_same_step(tmp_path: Path) -> None:
    with staged(tmp_path, "azure") as stage:
        stage.train(nodes=2, ranks=1)
        deadline = stage.preempt(60.0, node="1")
        status = stage.drained()
        assert time.time() < deadline
        assert status.notice_from.startswith("node 1: Azure")
        step = stage.sealed().step
        assert stage.steps_of(0)[-1] == stage.steps_of(1, node=1)[-1] == step
