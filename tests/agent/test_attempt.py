"""Whole attempts on this machine: the engine, an agent, torchrun ranks, a saver, a file store."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudshift_lab.agent.shm import default_base
from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.orders import (
    AgentStatus,
    Order,
    OrderKind,
    OrderResult,
    inbox_key,
    status_key,
)
from cloudshift_lab.core.placement import Cloud, Clouds, Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines import Handle, LocalEngine
from cloudshift_lab.storage.log import LogBase, RunLog
from cloudshift_lab.storage.store import Store, open_store

LIMIT_S = 120.0
STEPS = 60
SCRIPT = """
import os, random, signal, time
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from cloudshift_lab.training import Session

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
seed = int(os.environ["CLOUDSHIFT_SEED"])
torch.manual_seed(seed + rank)
random.seed(seed + rank)
model = DistributedDataParallel(
    nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)),
    bucket_cap_mb=0.01,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

def loss_of(step):
    draw = torch.Generator().manual_seed(seed + step * world + rank)
    return (model(torch.randn(8, 16, generator=draw)) ** 2).mean() + random.random()

session = Session(model=model, optimizer=optimizer, warm_up=lambda: loss_of(0))
for step in session.steps(int(os.environ["STEPS"])):
    if os.environ.get("RAISE_AT") == f"{rank}:{step}":
        raise ValueError(f"row {step} is not readable")
    if os.environ.get("HANG_AT") == f"{rank}:{step}":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    loss = loss_of(step)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", step, loss.item().hex(), flush=True)
    if step >= int(os.environ.get("SLOW_FROM", "1000000")):
        time.sleep(float(os.environ.get("SLOW_S", "0.05")))
    session.step(loss=loss, tokens=8)
    if step == int(os.environ.get("BREAK_AT", "0")):
        break
dist.destroy_process_group()
"""


class Machine:
    """One engine over one state directory with two file stores as clouds."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        clouds = [Cloud(n, n, store_url=f"file://{root}/{n}") for n in ("here", "there")]
        save_clouds(self.home, Clouds(tuple(clouds)))
        self.stores = {cloud.name: open_store(cloud.store_url) for cloud in clouds}
        self.engine = LocalEngine(self.home)
        self.handles: list[Handle] = []
        self._num_orders: dict[tuple[str, int], int] = {}

    def job(
        self, run_id: str, generation: int = 1, cloud: str = "here", **changes: object
    ) -> JobSpec:
        fields: dict[str, object] = {
            "run_id": run_id, "generation": generation, "owner": f"owner-{generation}",
            "placement": Placement(cloud, "r", "m", ranks_per_node=2),
            "store_url": self.stores[cloud].url, "script": SCRIPT, "home": str(self.home),
            "workdir": "", "save_policy": "10", "seed": 5,
            "env": {"STEPS": str(STEPS)},
        }  # fmt: skip
        return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]

    def submit(self, job: JobSpec) -> Handle:
        handle = self.engine.submit(job)
        self.handles.append(handle)
        return handle

    def status(self, job: JobSpec) -> AgentStatus | None:
        try:
            data = self.stores[job.placement.cloud].get(status_key(job.run_id, job.generation))
        except NotFound:
            return None
        return from_json(data, AgentStatus)

    def until(self, job: JobSpec, is_so: Callable[[AgentStatus], bool]) -> AgentStatus:
        """Wait for a status; an agent that ends otherwise fails the test with its log."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            status = self.status(job)
            if status is not None and is_so(status):
                return status
            over = status is not None and status.state in ("failed", "fenced", "finished")
            if over or time.monotonic() > deadline:
                pytest.fail(f"{status}\n{self.logs(job)}")
            time.sleep(0.05)

    def order(
        self, job: JobSpec, kind: OrderKind, sealed: OrderResult | None = None, **more: object
    ) -> OrderResult:
        number = self._num_orders.get((job.run_id, job.generation), 0)
        self._num_orders[job.run_id, job.generation] = number + 1
        order = Order(
            order_id=f"{kind}-{number}", kind=kind, at=0.0,
            step=sealed.step if sealed else None,
            manifest_digest=sealed.manifest_digest if sealed else None,
            **more,  # type: ignore[arg-type]
        )  # fmt: skip
        store = self.stores[job.placement.cloud]
        assert store.create(inbox_key(job.run_id, job.generation, number), to_json(order))
        name = order.order_id
        done = self.until(job, lambda s: name in s.results and s.results[name].state != "running")
        return done.results[name]

    def losses(self, job: JobSpec, rank: int = 0) -> dict[int, str]:
        """Every step a rank printed, with its loss to the last bit."""
        handle = self.engine.find(job.run_id, job.generation)
        assert handle is not None
        lines = re.findall(r"step (\d+) (\S+)", self.engine.logs(handle, rank, tail=10_000))
        return {int(step): loss for step, loss in lines}

    def logs(self, job: JobSpec) -> str:
        folder = self.engine.workdir(job.run_id, job.generation) / "logs"
        return "\n".join(f"-- {p.name}\n{p.read_text()[-2000:]}" for p in folder.glob("*.log"))

    def weights(self, job: JobSpec) -> dict[str, bytes]:
        checkpoint = open_run(self.stores[job.placement.cloud], job.run_id)
        assert checkpoint.step == STEPS
        return {name: checkpoint.tensor(name).tobytes() for name in checkpoint.names()}

    def close(self) -> None:
        for handle in self.handles:
            self.engine.stop(handle, grace_s=0.0)


def wait_ended(engine: LocalEngine, handle: Handle) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not engine.observe(handle).is_gone:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(run_id: str) -> set[int]:
    """Every process that knows the run from its command line or environment."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if run_id.encode() in text and int(path.name) != os.getpid():
            found.add(int(path.name))
    return found


def wait_no_process(run_id: str) -> None:
    deadline = time.monotonic() + 20.0
    while processes_of(run_id):
        assert time.monotonic() < deadline, processes_of(run_id)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def control(machine: Machine) -> JobSpec:
    """A run that nobody disturbs."""
    job = machine.job(REAL_WORLD.new_id("control"))
    machine.submit(job)
    return job


def finished(machine: Machine, job: JobSpec) -> AgentStatus:
    return machine.until(job, lambda status: status.state == "finished")


def hand_over(
    machine: Machine, source: JobSpec, target: JobSpec, sealed: OrderResult, *,
    carries_over: bool = True,
) -> None:  # fmt: skip
    """What the conductor's commit does; the sealed step is carried over unless it was replayed."""
    stores: list[Store] = [machine.stores[job.placement.cloud] for job in (source, target)]
    logs = [RunLog(store, source.run_id) for store in stores]
    landed = logs[0].handover(
        generation=source.generation, to_url=stores[1].url, new_owner=target.owner,
        migration_id="m", nonce="handover",
    )  # fmt: skip
    base = LogBase(stores[0].url, landed.seq, landed.digest)
    logs[1].acquire(generation=target.generation, owner=target.owner, nonce="a", base=base)
    last = logs[0].sync().last_commit
    assert last is not None and last.manifest_digest == sealed.manifest_digest
    if not carries_over:
        return
    logs[1].commit(
        generation=target.generation, step=last.step or 0, manifest_key=str(last.manifest_key),
        manifest_digest=str(last.manifest_digest), nonce="c",
    )  # fmt: skip


def test_a_run_survives_the_death_of_its_agent_bit_by_bit(
    machine: Machine, control: JobSpec
) -> None:
    run_id = REAL_WORLD.new_id("killed")
    slow = {"STEPS": str(STEPS), "SLOW_FROM": "25", "SLOW_S": "1"}
    first = machine.job(run_id, env=slow)
    handle = machine.submit(first)
    machine.until(first, lambda s: (s.committed_step or 0) >= 20)
    os.kill(handle.pid, signal.SIGKILL)
    wait_ended(machine.engine, handle)
    wait_no_process(run_id)
    assert machine.engine.observe(handle).state == "lost"
    newest = RunLog(machine.stores["here"], run_id).sync().last_commit
    assert newest is not None and newest.step is not None and newest.step >= 20

    second = machine.job(run_id, 2, restore_step=newest.step)
    last = machine.submit(second)
    finished(machine, second)
    wait_ended(machine.engine, last)
    finished(machine, control)
    assert min(machine.losses(second)) == newest.step + 1
    for rank in (0, 1):
        undisturbed = machine.losses(control, rank)
        assert {**machine.losses(first, rank), **machine.losses(second, rank)} == undisturbed
    assert machine.weights(second) == machine.weights(control)
    stale = [p.name for p in default_base().glob(f"cloudshift-*{run_id}*")]
    assert stale == []


def test_a_run_resumes_after_a_drain_then_moves_and_loses_no_step(
    machine: Machine, control: JobSpec
) -> None:
    run_id = REAL_WORLD.new_id("moved")
    slow = {"STEPS": "100000", "SLOW_FROM": "5"}
    source = machine.job(run_id, 11, env=slow)
    target = machine.job(
        run_id, 12, "there", env=slow, standby=True, source_cloud="here",
        source_url=machine.stores["here"].url,
    )  # fmt: skip
    source_handle, target_handle = machine.submit(source), machine.submit(target)
    machine.until(source, lambda s: s.state == "running" and (s.step or 0) >= 5)
    first = machine.order(source, "drain")
    assert machine.order(source, "resume").state == "done"
    machine.until(source, lambda s: s.state == "running" and (s.step or 0) > (first.step or 0))
    machine.until(target, lambda s: s.state == "standby")

    sealed = machine.order(source, "drain")
    status = machine.status(source)
    assert status is not None and status.state == "drained"
    assert max(machine.losses(source, 0)) == max(machine.losses(source, 1)) == sealed.step
    for kind in ("precopy", "copy", "verify"):
        result = machine.order(target, kind, sealed)  # type: ignore[arg-type]
        assert result.state == "done", result
    hand_over(machine, source, target, sealed)
    assert machine.order(target, "go", sealed).state == "done"
    machine.order(source, "retire")
    wait_ended(machine.engine, source_handle)
    assert machine.engine.observe(source_handle).returncode == 0

    assert machine.engine.stop(target_handle, grace_s=LIMIT_S).returncode == 0
    status = machine.status(target)
    assert status is not None
    assert (status.state, status.committed_step) == ("stopped", max(machine.losses(target)))
    finished(machine, control)
    for rank in (0, 1):
        before, after = machine.losses(source, rank), machine.losses(target, rank)
        assert not before.keys() & after.keys()
        both, undisturbed = {**before, **after}, machine.losses(control, rank)
        common = both.keys() & undisturbed.keys()
        assert {s: both[s] for s in common} == {s: undisturbed[s] for s in common}
        assert sorted(both) == list(range(1, len(both) + 1))
    wait_no_process(run_id)


def test_a_replayed_step_is_equal_bit_by_bit_and_training_goes_on_from_it_without_a_copy(
    machine: Machine, control: JobSpec
) -> None:
    run_id = REAL_WORLD.new_id("replayed")
    slow = {"STEPS": "100000", "SLOW_FROM": "5"}
    source = machine.job(run_id, 21, env=slow)
    target = machine.job(
        run_id, 22, "there", env=slow, standby=True, source_cloud="here",
        source_url=machine.stores["here"].url,
    )  # fmt: skip
    machine.submit(source)
    target_handle = machine.submit(target)
    machine.until(target, lambda s: s.state == "standby")
    assert machine.order(source, "save").state == "done"
    copied = machine.order(target, "precopy", num_steps=3, replay=True)
    assert copied.state == "done" and copied.step is not None, copied
    rehearsed = machine.order(target, "rehearse", num_steps=3, replay=True)
    assert rehearsed.state == "done" and rehearsed.step_s, rehearsed
    status = machine.status(target)
    assert status is not None
    assert (status.state, status.step, status.first_step_at) == ("standby", None, None)

    sealed = machine.order(source, "drain")
    proved = machine.order(target, "catch_up", sealed)
    assert (proved.state, proved.step) == ("done", sealed.step), proved
    assert RunLog(machine.stores["there"], run_id).sync().records == ()
    hand_over(machine, source, target, sealed, carries_over=False)
    assert machine.order(target, "go", sealed).state == "done"
    machine.order(source, "retire")
    machine.until(target, lambda s: (s.committed_step or 0) >= (sealed.step or 0))
    first = RunLog(machine.stores["there"], run_id).sync().commits[0]
    assert (first.step, first.generation) == (sealed.step, 22)

    assert machine.engine.stop(target_handle, grace_s=LIMIT_S).returncode == 0
    finished(machine, control)
    for rank in (0, 1):
        before, after = machine.losses(source, rank), machine.losses(target, rank)
        assert min(after) > copied.step and max(after) > max(before) == sealed.step
        undisturbed = machine.losses(control, rank)
        for losses in (before, undisturbed):
            common = after.keys() & losses.keys()
            assert {s: after[s] for s in common} == {s: losses[s] for s in common}
        assert before.keys() & after.keys()
    wait_no_process(run_id)


def test_ranks_that_stop_early_finish_with_their_last_step_committed(machine: Machine) -> None:
    env = {"STEPS": str(STEPS), "BREAK_AT": "17"}
    job = machine.job(REAL_WORLD.new_id("early"), 41, env=env)
    handle = machine.submit(job)
    assert finished(machine, job).committed_step == 17
    wait_ended(machine.engine, handle)
    assert machine.engine.observe(handle).returncode == 0


def test_a_rank_that_raises_is_named_though_another_hangs_and_heeds_no_signal(
    machine: Machine,
) -> None:
    env = {"STEPS": str(STEPS), "RAISE_AT": "1:13", "HANG_AT": "0:13"}
    job = machine.job(REAL_WORLD.new_id("raises"), 31, env=env)
    handle = machine.submit(job)
    status = machine.until(job, lambda s: s.state == "failed")
    assert (status.error, status.error_rank) == ("ValueError: row 13 is not readable", 1)
    assert status.committed_step == 10
    lines = (status.traceback or "").splitlines()
    assert lines[0].startswith("Traceback")
    assert "script.py" in lines[1]
    assert "raise ValueError" in lines[2]
    wait_ended(machine.engine, handle)
    assert machine.engine.observe(handle).returncode == 1


def test_an_error_that_comes_again_is_the_scripts_and_the_step_before_it_is_saved(
    machine: Machine,
) -> None:
    env = {"STEPS": str(STEPS), "RAISE_AT": "1:13"}
    run_id = REAL_WORLD.new_id("again")
    job = machine.job(run_id, 32, env=env, save_policy="10m", restarts=3, spare="off")
    handle = machine.submit(job)
    status = machine.until(job, lambda s: s.state == "failed")
    assert (status.error, status.error_rank) == ("ValueError: row 13 is not readable", 1)
    assert status.committed_step == 12
    again = [line for line in status.warnings if "started again after step 12" in line]
    assert len(again) == 1
    wait_ended(machine.engine, handle)
    wait_no_process(run_id)


def test_saves_by_the_clock_are_of_steps_that_all_ranks_agree_upon(machine: Machine) -> None:
    job = machine.job(
        REAL_WORLD.new_id("clock"), save_policy="1s", env={"STEPS": "100000", "SLOW_FROM": "1"}
    )
    machine.submit(job)
    first = machine.until(job, lambda status: (status.committed_step or 0) > 0)
    later = machine.until(job, lambda s: (s.committed_step or 0) > (first.committed_step or 0))
    assert later.saves.policy == "every 1.0 s"
    assert later.saves.save_s is not None and later.saves.raw_bytes > 0
    opened = open_run(machine.stores["here"], job.run_id)
    assert (opened.coverage, opened.world_size) == ("complete", 2)
    assert machine.order(job, "stop").step is not None


def test_training_goes_on_beside_a_saver_that_stands_still_and_the_next_one_saves(
    machine: Machine,
) -> None:
    job = machine.job(REAL_WORLD.new_id("still"), env={"STEPS": "100000", "SLOW_FROM": "1"})
    machine.submit(job)
    before = machine.until(job, lambda status: (status.committed_step or 0) >= 10)
    saver = pid_of(job.run_id, "checkpoint.saving")
    os.kill(saver, signal.SIGSTOP)
    reached = machine.until(job, lambda s: (s.step or 0) >= (before.step or 0) + 40)
    assert reached.state == "running"
    os.kill(saver, signal.SIGKILL)
    after = machine.until(job, lambda s: (s.committed_step or 0) > (reached.committed_step or 0))
    assert any("the saver was killed" in warning for warning in after.warnings)
    assert pid_of(job.run_id, "checkpoint.saving") != saver
    assert machine.order(job, "stop").step is not None


def pid_of(run_id: str, module: str) -> int:
    """The one process of a run that runs a module."""
    found = [
        pid for pid in processes_of(run_id)
        if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]  # fmt: skip
    assert len(found) == 1
    return found[0]
