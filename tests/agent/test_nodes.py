"""Attempts on several nodes: an agent each, ranks that meet, shares that are sealed together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.agent.nodes import follower_key
from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines.local import NODES_ENV

from .test_attempt import Machine, finished, processes_of, wait_ended, wait_no_process

TWO_NODES = Placement("here", "r", "m", nodes=2, ranks_per_node=1)
ONE_NODE = Placement("here", "r", "m", nodes=1, ranks_per_node=1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    made.close()


def spread(machine: Machine, name: str, generation: int = 1, **changes: object) -> JobSpec:
    return machine.job(REAL_WORLD.new_id(name), generation, **{"placement": TWO_NODES, **changes})  # type: ignore[arg-type]


def agents_of(run_id: str) -> set[int]:
    """The agents of a run's nodes."""
    return {
        pid for pid in processes_of(run_id)
        if b"cloudshift_lab.agent\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }  # fmt: skip


def test_two_nodes_train_save_drain_resume_and_a_single_one_goes_on_from_there(
    machine: Machine,
) -> None:
    control = machine.job(REAL_WORLD.new_id("control"), 71)
    machine.submit(control)
    job = spread(machine, "spread", env={"STEPS": "100000", "SLOW_FROM": "1"})
    handle = machine.submit(job)
    status = machine.until(job, lambda s: (s.committed_step or 0) >= 10)
    assert (status.nodes_up, len(agents_of(job.run_id))) == (2, 2)
    drained = machine.order(job, "drain")
    sealed = open_run(machine.stores["here"], job.run_id)
    assert (sealed.step, sealed.coverage, sealed.world_size) == (drained.step, "complete", 2)
    assert machine.order(job, "resume").state == "done"
    machine.until(job, lambda s: s.state == "running" and (s.step or 0) > (drained.step or 0))
    stopped = machine.order(job, "stop").step
    wait_ended(machine.engine, handle)
    wait_no_process(job.run_id)
    finished(machine, control)
    for rank in (0, 1):
        ours, undisturbed = machine.losses(job, rank), machine.losses(control, rank)
        assert sorted(ours) == list(range(1, (stopped or 0) + 1))
        common = ours.keys() & undisturbed.keys()
        assert {s: ours[s] for s in common} == {s: undisturbed[s] for s in common}

    assert stopped is not None and stopped > (drained.step or 0)
    env = {"STEPS": str(stopped + 15)}
    alone = machine.job(job.run_id, 2, placement=ONE_NODE, restore_step=stopped, env=env)
    machine.submit(alone)
    assert finished(machine, alone).nodes_up == 1
    assert sorted(machine.losses(alone)) == list(range(stopped + 1, stopped + 16))
    assert open_run(machine.stores["here"], job.run_id).world_size == 1


def test_a_node_that_never_comes_is_not_counted_until_it_does(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spread(machine, "alone", standby=True)
    monkeypatch.setenv(NODES_ENV, "1")
    handle = machine.submit(job)
    status = machine.until(job, lambda s: s.beat >= 3)
    assert (status.state, status.nodes_up) == ("starting", 1)
    assert len(agents_of(job.run_id)) == 1
    monkeypatch.delenv(NODES_ENV)
    assert machine.submit(job) == handle
    assert machine.until(job, lambda s: s.state == "standby").nodes_up == 2
    machine.order(job, "retire")
    wait_no_process(job.run_id)


def test_when_a_node_dies_the_attempt_fails_for_want_of_nodes(machine: Machine) -> None:
    job = spread(machine, "torn", env={"STEPS": "100000", "SLOW_FROM": "1"})
    handle = machine.submit(job)
    machine.until(job, lambda s: (s.committed_step or 0) >= 10)
    (follower,) = agents_of(job.run_id) - {handle.pid}
    os.kill(follower, signal.SIGKILL)
    status = machine.until(job, lambda s: s.state == "failed")
    assert status.nodes_up == 1
    assert str(status.error).startswith("NodesMissing: 1 of 2 nodes are gone")
    wait_ended(machine.engine, handle)
    wait_no_process(job.run_id)


def test_a_node_that_dies_at_the_gate_is_waited_for_and_met_anew(machine: Machine) -> None:
    job = spread(machine, "gate", standby=True)
    handle = machine.submit(job)
    machine.until(job, lambda s: s.state == "standby")
    (follower,) = agents_of(job.run_id) - {handle.pid}
    os.kill(follower, signal.SIGKILL)
    machine.until(job, lambda s: s.nodes_up == 1)
    assert machine.engine.revive(job) == handle
    machine.until(job, lambda s: (s.state, s.nodes_up) == ("standby", 2))
    assert machine.engine.stop(handle, grace_s=60.0).returncode == 0
    wait_no_process(job.run_id)


def test_a_follower_whose_generation_the_log_has_passed_starts_no_rank(
    machine: Machine,
) -> None:
    late = spread(machine, "late", standby=True)
    newer = machine.job(late.run_id, 2, placement=ONE_NODE)
    machine.submit(newer)
    machine.until(newer, lambda s: s.committed_step is not None)
    workdir = machine.engine.workdir(late.run_id, 1, node=1)
    machine.engine.start_node(msgspec.structs.replace(late, node=1))
    deadline = time.monotonic() + 60.0
    while not (workdir / "exit.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status = machine.stores["here"].get(follower_key(late.run_id, 1, 1))
    assert b'"state":"fenced"' in status
    assert not (workdir / "logs" / "torchrun.log").exists()
