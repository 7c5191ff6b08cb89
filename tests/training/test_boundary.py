"""When a session captures: by steps, by the agent's word, again after a loss, or not at all."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.errors import Exhausted, NotFound
from cloudshift_lab.core.staging import Go, RankState, state_file
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.training import Drained, Session
from cloudshift_lab.training import slot as slot_module
from cloudshift_lab.training.copying import Copying

from .conftest import AroundUs


class Job:
    """The weight is 1 after step 1, 2 after step 2, and so on."""

    def __init__(self, **options: bool) -> None:
        self.model = nn.Linear(4, 4, bias=False)
        nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.session = Session(model=self.model, optimizer=self.optimizer, **options)

    def train(self) -> None:
        self.model.weight.grad = -torch.ones(4, 4)
        self.optimizer.step()


@pytest.fixture(autouse=True)
def _no_departure(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The end of these tests is not the end of a rank; only its socket is closed."""
    calls: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", calls.append)
    yield
    for call in calls:
        if call.__name__ == "close":
            call()


def policy(around: AroundUs, text: str) -> None:
    around.job = msgspec.structs.replace(around.job, save_policy=text)
    around.job_file.write_bytes(to_json(around.job))


def weights(around: AroundUs, step: int) -> set[float]:
    read = read_slot(around.node_dir, 0, step)
    return set(np.frombuffer(read.buffers[0], dtype=np.float32).tolist())


def staged_steps(around: AroundUs, up_to: int) -> list[int]:
    found = []
    for step in range(up_to + 1):
        try:
            read_slot(around.node_dir, 0, step)
        except NotFound:
            continue
        found.append(step)
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_agent_asks_for_a_save_and_gets_it_at_the_next_common_boundary(
    around: AroundUs,
) -> None:
    policy(around, "auto")
    job = Job()
    for step in job.session.steps(12):
        job.train()
        if step == 3:
            around.say(capture=1)
        job.session.step()
        if step == 6:
            until(lambda: staged_steps(around, 12) == [4])  # heard at the end of 3
            assert weights(around, 4) == {4.0}
            around.say(released_step=4, capture=3)
    assert staged_steps(around, 12) == [8, 12]  # asked for twice, once was enough


def test_a_save_asked_for_while_one_is_not_committed_waits_for_that(around: AroundUs) -> None:
    policy(around, "1h")
    job = Job()
    for step in job.session.steps(12):
        job.train()
        if step in (2, 4):
            around.say(capture=step)
        if step == 8:
            until(lambda: staged_steps(around, 12) == [3])
            around.say(released_step=3)
        job.session.step()
    assert staged_steps(around, 12) == [9, 12]


def test_a_save_is_of_its_step_although_the_next_one_runs_while_it_is_copied(
    around: AroundUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    original = Copying.read

    def late(copying: Copying) -> None:
        if threading.current_thread().name == "cloudshift-capture":
            go.wait(60)
        original(copying)

    monkeypatch.setattr(Copying, "read", late)
    job = Job()
    for step in job.session.steps(100):
        if step == 4:
            assert staged_steps(around, 4) == []
            go.set()
        job.train()
        job.session.step()
        if step == 4:
            break
    job.model.weight.data.fill_(99.0)
    assert weights(around, 3) == {3.0}


def test_a_loop_left_right_after_a_save_keeps_it_whatever_is_done_to_the_weights(
    around: AroundUs,
) -> None:
    job = Job()
    for step in job.session.steps(100):
        job.train()
        job.session.step()
        if step == 3:
            break
    job.model.weight.data.fill_(99.0)
    assert weights(around, 3) == {3.0}


def test_a_torn_save_is_not_announced_and_made_again_at_once(
    around: AroundUs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go = threading.Event()
    original = Copying.read

    def late(copying: Copying) -> None:
        if threading.current_thread().name == "cloudshift-capture":
            go.wait(60)
        original(copying)

    monkeypatch.setattr(Copying, "read", late)
    job = Job()
    for step in job.session.steps(7):
        if step == 4:
            job.model.weight.data += 10.0  # between session.step() and the optimizer's step
            go.set()
        job.train()
        job.session.step()
        if step == 4:
            assert staged_steps(around, 7) == []
    # Noticed before step 4 ends, told to the others then, so that all capture after step 5.
    assert staged_steps(around, 7) == [5, 7]
    assert weights(around, 5) == {15.0}
    told = capsys.readouterr().err
    assert told.count("'model/weight' changed before the optimizer's step") == 1


def test_without_room_training_goes_on_without_saves_says_so_and_recovers(
    around: AroundUs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(_descriptor: int, _num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    job = Job()
    with monkeypatch.context() as patched:
        patched.setattr(slot_module, "take", no_room)
        for step in job.session.steps(100):
            job.train()
            job.session.step()
            if step == 7:
                break
        assert staged_steps(around, 7) == []
        warning = around.state().warning
        assert warning is not None
        assert "step 6 is not saved: no space left in shared memory" in warning
        assert "enlarge the shared memory" in warning
    job = Job()
    for _ in job.session.steps(4):
        job.train()
        job.session.step()
    assert staged_steps(around, 4) == [3, 4]
    assert capsys.readouterr().err.count("no space left") == 2  # the warning, and the last state


def test_a_warning_of_too_little_room_is_taken_back_when_a_save_succeeds(
    around: AroundUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = slot_module.take

    def no_room(_descriptor: int, _num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slot_module, "take", no_room)
    job = Job()
    for step in job.session.steps(100):
        if step == 5:
            assert around.state().warning is not None
            monkeypatch.setattr(slot_module, "take", take)
        job.train()
        job.session.step()
        if step == 7:
            break
    assert around.state().warning is None
    assert staged_steps(around, 7) == [6]


def test_without_room_for_the_last_state_the_run_fails_with_what_to_do(
    around: AroundUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_descriptor: int, _num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slot_module, "take", no_room)
    job = Job()
    with pytest.raises(Exhausted, match=r"no space left in shared memory.*use more ranks"):
        for step in job.session.steps(100):
            job.train()
            if step == 1:
                around.say(drain=True)
            job.session.step()


def test_a_drain_while_a_save_is_copied_leaves_both_whole(around: AroundUs) -> None:
    job = Job()
    with pytest.raises(Drained) as end:
        for step in job.session.steps(100):
            job.train()
            if step == 3:
                around.say(drain=True)
            job.session.step()
    assert end.value.step == 4
    assert (weights(around, 3), weights(around, 4)) == ({3.0}, {4.0})


def test_a_restore_that_need_not_fit_says_what_did_not(
    around: AroundUs, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in (job := Job()).session.steps(3):
        job.train()
        job.session.step()
    around.say(go=around.save(3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
    session = Session(model=model, optimizer=torch.optim.SGD(model.parameters()), strict=False)
    assert session.start_step == 3
    assert session.restored is not None and not session.restored.fits
    assert "model/1.weight" in capsys.readouterr().err


RANK = """
import os, sys, threading, time, torch
import torch.distributed as dist
from torch import nn
from cloudshift_lab.training import Session
from cloudshift_lab.training.copying import Copying

dist.init_process_group("gloo")
rank = dist.get_rank()
model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(2)))
for parameter in model.parameters():
    nn.init.zeros_(parameter)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
session = Session(model=model, optimizer=optimizer)
go = threading.Event()
original = Copying.read
def late(copying):
    if threading.current_thread().name == "cloudshift-capture":
        go.wait(60)
    original(copying)
if rank == 1:
    Copying.read = late
for step in session.steps(9):
    dist.barrier()
    if rank == 1 and step == 4:
        for parameter in model.parameters():
            parameter.data += 10.0
        go.set()
    for parameter in model.parameters():
        parameter.grad = -torch.ones(4, 4)
    optimizer.step()
    session.step()
dist.destroy_process_group()
"""


def test_what_one_rank_lost_is_dropped_by_all_and_captured_again_at_the_same_step(
    around: AroundUs, tmp_path: Path
) -> None:
    placement = msgspec.structs.replace(around.job.placement, ranks_per_node=2)
    around.job = msgspec.structs.replace(around.job, placement=placement)
    around.job_file.write_bytes(to_json(around.job))
    around.say(go=Go())
    script = tmp_path / "ranks.py"
    script.write_text(RANK)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--master-addr=127.0.0.1", "--master-port=0", "--rdzv-backend=c10d",
         "--rdzv-endpoint=127.0.0.1:0", str(script)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        found = []
        for step in range(10):
            try:
                read_slot(around.node_dir, rank, step)
            except NotFound:
                continue
            found.append(step)
        assert found == [5, 9]
    assert "rank 1: training waits for the copy" in done.stderr
    assert (
        from_json(state_file(around.node_dir, 1).read_bytes(), RankState, what="state").state
        == "finished"
    )
