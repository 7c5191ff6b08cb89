"""The local engine with real agent processes, whose ranks never get far."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.core.errors import Exhausted
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines import Handle, LocalEngine, Observation
from cloudshift_lab.engines import process as process_module
from cloudshift_lab.engines.engine import machine_of
from cloudshift_lab.engines.local import HANDLE_FILE
from cloudshift_lab.engines.process import environment, has_ended, process_start_time, reap

LIMIT_S = 60.0


@pytest.fixture
def engine(tmp_path: Path) -> LocalEngine:
    return LocalEngine(tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    """A standby whose script only sleeps."""
    script = tmp_path / "sleep.py"
    script.write_text("import time\ntime.sleep(600)\n")
    return JobSpec(
        run_id=REAL_WORLD.new_id("run"), generation=1, owner="o", standby=True,
        placement=Placement("local", "here", "this-machine", ranks_per_node=1),
        store_url=f"file://{tmp_path}/store", script=str(script), home=str(tmp_path),
        workdir="", save_policy="10", seed=0,
    )  # fmt: skip


@pytest.fixture
def running(engine: LocalEngine, job: JobSpec) -> Iterator[Handle]:
    handle = engine.submit(job)
    yield handle
    engine.stop(handle, grace_s=0.0)


def two_nodes(job: JobSpec) -> JobSpec:
    return msgspec.structs.replace(job, placement=msgspec.structs.replace(job.placement, nodes=2))


def node(engine: LocalEngine, job: JobSpec, number: int) -> Handle:
    """The handle of one node's agent."""
    path = engine.workdir(job.run_id, job.generation, number) / HANDLE_FILE
    return from_json(path.read_bytes(), Handle)


@pytest.fixture
def spread(engine: LocalEngine, job: JobSpec) -> Iterator[tuple[Handle, Handle]]:
    """The agents of two nodes, both up."""
    leader = engine.submit(two_nodes(job))
    handles = leader, node(engine, job, 1)
    for handle in handles:
        wait_for(engine, handle, "running")
    yield handles
    engine.stop(leader, grace_s=0.0)


def kill(engine: LocalEngine, handle: Handle) -> None:
    os.kill(handle.pid, signal.SIGKILL)
    wait_for(engine, handle, "lost")


def wait_for(engine: LocalEngine, handle: Handle, *states: str) -> Observation:
    deadline = time.monotonic() + LIMIT_S
    while (seen := engine.observe(handle)).state not in states:
        assert time.monotonic() < deadline, engine.logs(handle)
        time.sleep(0.02)
    return seen


def test_an_attempt_that_was_never_started_is_not_found(engine: LocalEngine) -> None:
    assert engine.find("run-x", 1) is None


def test_submitting_twice_starts_one_agent(
    engine: LocalEngine, job: JobSpec, running: Handle, tmp_path: Path
) -> None:
    assert engine.submit(job) == running
    assert LocalEngine(tmp_path).submit(job) == running
    assert engine.find(job.run_id, 1) == running
    assert wait_for(engine, running, "running") == Observation("running")


def test_an_agent_lives_in_a_session_of_its_own(running: Handle) -> None:
    assert os.getsid(running.pid) == running.pid != os.getsid(0)


def test_a_stopped_agent_says_its_exit_code_and_stays_findable(
    engine: LocalEngine, job: JobSpec, running: Handle
) -> None:
    wait_for(engine, running, "running")
    assert engine.stop(running, grace_s=LIMIT_S) == Observation("exited", 0)
    assert engine.submit(job) == running
    assert engine.stop(running, grace_s=LIMIT_S) == Observation("exited", 0)


def test_a_killed_agent_is_lost_and_can_be_revived(
    engine: LocalEngine, job: JobSpec, running: Handle
) -> None:
    wait_for(engine, running, "running")
    os.kill(running.pid, signal.SIGKILL)
    assert wait_for(engine, running, "lost").is_gone
    again = engine.revive(job)
    assert again.pid != running.pid
    assert engine.revive(job) == again
    wait_for(engine, again, "running")
    engine.stop(again, grace_s=0.0)


def test_stopping_an_attempt_whose_leader_is_gone_ends_its_followers(
    engine: LocalEngine, spread: tuple[Handle, Handle]
) -> None:
    leader, follower = spread
    kill(engine, leader)
    engine.stop(leader, grace_s=LIMIT_S)
    assert engine.observe(follower).is_gone


def test_reviving_a_leader_that_is_gone_starts_every_node_anew_and_no_other(
    engine: LocalEngine, job: JobSpec, spread: tuple[Handle, Handle]
) -> None:
    leader, follower = spread
    assert engine.revive(two_nodes(job)) == leader
    kill(engine, leader)
    again = engine.revive(two_nodes(job))
    assert again != leader
    assert engine.observe(follower).is_gone
    kept = node(engine, job, 1)
    assert kept != follower
    assert not engine.observe(kept).is_gone
    kill(engine, again)
    alone = engine.revive(job)
    assert engine.observe(kept).is_gone
    assert node(engine, job, 1) == kept
    assert not engine.observe(alone).is_gone
    engine.stop(alone, grace_s=0.0)


def test_an_agent_that_ignores_the_signal_is_ended_by_force(
    engine: LocalEngine, running: Handle
) -> None:
    wait_for(engine, running, "running")
    os.kill(running.pid, signal.SIGSTOP)
    assert engine.stop(running, grace_s=0.1).is_gone


def test_a_submitter_that_dies_before_writing_the_handle_leaves_a_findable_agent(
    engine: LocalEngine, job: JobSpec, running: Handle
) -> None:
    handle_file = Path(running.workdir) / "handle.json"
    handle_file.unlink()
    assert engine.submit(job) == running


def test_a_job_without_a_script_exits_with_the_reason_in_its_log(
    engine: LocalEngine, job: JobSpec, tmp_path: Path
) -> None:
    (tmp_path / "sleep.py").unlink()
    handle = engine.submit(job)
    assert wait_for(engine, handle, "exited").returncode == 2
    assert "[agent] " in engine.logs(handle)
    assert "there is no script at" in engine.logs(handle)


def test_logs_of_a_rank_that_wrote_none_are_empty(engine: LocalEngine, running: Handle) -> None:
    assert engine.logs(running, rank=7) == ""


def test_logs_without_a_rank_are_those_of_all_ranks(engine: LocalEngine, running: Handle) -> None:
    for rank in (0, 1):
        (Path(running.workdir) / "logs" / f"rank-{rank}.log").write_text(f"hello from {rank}\n")
    assert engine.logs(running).startswith("[rank 0] hello from 0\n[rank 1] hello from 1")


def test_a_child_finds_the_package_also_from_an_uninstalled_checkout(tmp_path: Path) -> None:
    if not Path(process_module.__file__).is_relative_to(Path(__file__).parents[2]):
        pytest.skip("the package is installed and not run from this checkout")
    code = "import cloudshift_lab; print(cloudshift_lab.__file__)"
    bare = [sys.executable, "-S", "-c", code]  # no site-packages: nothing is installed
    found = subprocess.run(bare, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).is_relative_to(Path(__file__).parents[2])


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    started = process_start_time(os.getpid())
    assert started is not None
    assert not has_ended(os.getpid(), started)
    assert has_ended(os.getpid(), "ticks:1")


def test_a_zombie_has_ended_and_can_be_collected() -> None:
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    started = process_start_time(child.pid)
    deadline = time.monotonic() + LIMIT_S
    while started is not None and not has_ended(child.pid, started):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert reap(child.pid) == 3
    assert reap(child.pid) is None
    child.returncode = 3


def test_a_job_takes_the_first_machines_that_it_may_use(job: JobSpec) -> None:
    barred = msgspec.structs.replace(two_nodes(job), exclude=("local:here/0", "local:here/2"))
    names = [machine_of(msgspec.structs.replace(barred, node=number)) for number in (0, 1)]
    assert names == ["local:here/1", "local:here/3"]
    assert machine_of(job) == "local:here/0"


def test_where_every_machine_is_excluded_nothing_is_started(tmp_path: Path, job: JobSpec) -> None:
    engine = LocalEngine(tmp_path, max_nodes=2)
    barred = msgspec.structs.replace(job, exclude=("local:here/0", "local:here/1"))
    with pytest.raises(Exhausted, match=r"no machine left but local:here/0, local:here/1"):
        engine.submit(barred)
    assert engine.find(job.run_id, job.generation) is None


def test_a_handle_tells_its_machine(engine: LocalEngine, running: Handle) -> None:
    assert running.machine == "local:here/0"
    assert engine.find(running.run_id, running.generation) == running
