"""Overlapped captures: of one moment whatever the script does, or not announced at all."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.training import flight as flight_module
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.copying import CHUNK_BYTES, Copying
from cloudshift_lab.training.flight import Lost
from cloudshift_lab.training.parts import Part, Share
from cloudshift_lab.training.watching import Watch


class Slow:
    """Lets a copy begin only when the test says so: whatever may happen meanwhile then does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.reading = threading.Event()
        original = Copying.read

        def read(copying: Copying) -> None:
            if threading.current_thread().name == "cloudshift-capture":
                self.reading.set()
                assert self.go.wait(60)
            original(copying)

        monkeypatch.setattr(Copying, "read", read)


class Job:
    """A small model under AdamW with a capture around it."""

    def __init__(
        self, node_dir: Path, make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    ) -> None:
        torch.manual_seed(0)
        self.node_dir = node_dir
        self.model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.Linear(16, 1, bias=False))
        self.optimizer = make(self.model.parameters())
        self.released = -1
        self.said: list[str] = []
        self.arena = Arena(node_dir, 0, 1, released=lambda: self.released)
        self.capture = Capture(
            self.arena, [self.optimizer], self.model, say=self.said.append
        )  # fmt: skip
        self.backward()
        self.optimizer.step()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(3, 4)).pow(2).sum().backward()

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {name: value.detach() for name, value in self.model.named_parameters()}
        for number, state in enumerate(self.optimizer.state.values()):
            found |= {f"{number}/{k}": v for k, v in state.items() if torch.is_tensor(v)}
        return found

    def share(self, leaves: object = None, **volatile: torch.Tensor) -> Share:
        if not hasattr(self, "_steady"):
            self._steady = tuple(part(name, value) for name, value in self.tensors().items())
        return Share(self._steady, tuple(part(n, v) for n, v in volatile.items()), leaves)

    def now(self) -> dict[str, bytes]:
        return {name: value.numpy().tobytes() for name, value in self.tensors().items()}

    def staged(self, step: int) -> dict[str, bytes]:
        read = read_slot(self.node_dir, 0, step)
        return {box.name: bytes(b) for box, b in zip(read.boxes, read.buffers, strict=True)}


def part(name: str, tensor: torch.Tensor) -> Part:
    return Part(name, tensor, tuple(tensor.shape), (0,) * tensor.dim())


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.capture.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_module, "SETTLE_S", 0.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_module, "SETTLE_S", 600.0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_staged(job: Job, step: int) -> bool:
    try:
        job.staged(step)
    except NotFound:
        return False
    return True


def test_the_copy_runs_during_the_next_step_and_is_of_the_moment_it_began(
    job: Job, slow: Slow, patient: None
) -> None:
    before = job.now()
    job.capture.begin(1, job.share())
    assert slow.reading.wait(60)
    job.backward()
    assert not is_staged(job, 1)
    slow.go.set()
    job.optimizer.step()
    job.capture.finish()
    assert job.staged(1) == before != job.now()
    assert (job.capture.mode, job.said) == ("overlapped", [])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_optimizer_waits_for_the_copy(job: Job, slow: Slow, num_threads: int) -> None:
    before = job.now()
    job.capture.begin(1, job.share())
    job.backward()
    stepping = threading.Thread(target=job.optimizer.step)
    stepping.start()
    assert slow.reading.wait(60)
    stepping.join(0.05)
    assert stepping.is_alive() and job.now() == before
    slow.go.set()
    stepping.join(60)
    assert job.now() != before
    job.capture.finish()
    assert job.staged(1) == before


def test_many_steps_are_each_captured_whole(job: Job) -> None:
    share = job.share()
    for step in range(1, 40):
        before = job.now()
        job.capture.begin(step, share)
        job.backward()
        job.optimizer.step()
        job.capture.finish()
        assert job.staged(step) == before
        job.released = step
    assert job.said == []


def test_what_is_volatile_is_copied_before_begin_returns(job: Job, slow: Slow) -> None:
    buffer = torch.zeros(8)
    leaves = {"lr": [0.1]}
    job.capture.begin(1, job.share(leaves, running_mean=buffer))
    buffer.fill_(9.0)
    leaves["lr"][0] = 7.0
    slow.go.set()
    job.capture.finish()
    assert np.frombuffer(job.staged(1)["running_mean"], dtype=np.float32).tolist() == [0.0] * 8
    assert read_slot(job.node_dir, 0, 1).leaves == {"lr": [0.1]}


def test_the_buffers_of_a_batch_norm_do_not_tear_an_overlapped_capture(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    released = -1
    capture = Capture(Arena(tmp_path, 0, 1, released=lambda: released), [optimizer], model)
    steady = tuple(part(n, p) for n, p in model.named_parameters())
    volatile = tuple(part(n, b) for n, b in model.named_buffers())
    for step in range(1, 20):
        before = {n: b.numpy().tobytes() for n, b in model.named_buffers()}
        capture.begin(step, Share(steady, volatile, None))
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        capture.finish()
        read = read_slot(tmp_path, 0, step)
        found = {b.name: bytes(data) for b, data in zip(read.boxes, read.buffers, strict=True)}
        assert {name: found[name] for name in before} == before
        assert before != {n: b.numpy().tobytes() for n, b in model.named_buffers()}
        released = step
    assert capture.mode == "overlapped"
    capture.close()


def edit_in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def edit_data(weight: torch.Tensor) -> None:
    weight.data.mul_(1.5)


@pytest.mark.parametrize("edit", [edit_in_place, edit_data])
def test_a_copy_that_was_changed_under_is_never_announced_and_later_ones_block(
    job: Job, slow: Slow, patient: None, edit: Callable[[torch.Tensor], None]
) -> None:
    job.capture.begin(1, job.share())
    edit(job.model[0].weight)
    slow.go.set()
    job.backward()
    job.optimizer.step()
    job.capture.finish()
    assert not is_staged(job, 1)
    assert (job.capture.lost, job.capture.mode) == (Lost.TORN, "blocking")
    assert len(job.said) == 1
    assert "'0.weight' changed before the optimizer's step" in job.said[0]
    assert "change parameters only in an optimizer's step" in job.said[0]
    before = job.now()
    job.capture.begin(2, job.share())
    edit(job.model[0].weight)
    assert job.staged(2) == before
    assert len(job.said) == 1


def test_an_edit_through_data_leaves_no_trace_in_the_version_counter() -> None:
    weight = torch.ones(100)
    version = weight._version
    edit_data(weight)
    assert weight._version == version  # hence the samples
    watch = Watch(["w"], [weight])
    watch.begin()
    assert watch.changed() is None
    edit_data(weight)
    assert watch.changed() == "w"


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw-foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_nobody_announced_is_noticed_whatever_the_optimizer(
    tmp_path: Path, name: str
) -> None:
    job = Job(tmp_path, OPTIMIZERS[name])
    for tensor_name, tensor in job.tensors().items():
        watch = Watch([tensor_name], [tensor])
        watch.begin()
        before = tensor.clone()
        job.backward()
        job.optimizer.step()
        assert (watch.changed() is None) == torch.equal(before, tensor)
    job.capture.close()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captures_overlap_with_every_optimizer(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path, OPTIMIZERS[name])
    for step in range(1, 4):
        before = job.now()
        job.capture.begin(step, job.share())
        job.backward()
        job.optimizer.step()
        job.capture.finish()
        assert job.staged(step) == before
        job.released = step
    assert (job.capture.mode, job.said) == ("overlapped", [])
    job.capture.close()


def test_a_capture_without_a_following_optimizer_step_is_announced_by_itself(
    job: Job, hasty: None
) -> None:
    job.capture.begin(1, job.share())
    until(lambda: is_staged(job, 1))
    assert job.staged(1) == job.now()


def test_an_optimizer_that_is_skipped_does_not_hurt(job: Job, patient: None) -> None:
    """As GradScaler does when a gradient overflows."""
    before = job.now()
    job.capture.begin(1, job.share())
    job.backward()
    until(lambda: job.capture._flight is not None and job.capture._flight.is_copied.is_set())
    job.capture.settle()
    until(lambda: is_staged(job, 1))
    assert job.staged(1) == before
    job.capture.settle()
    assert job.capture.lost == Lost.NOTHING


def test_an_optimizer_in_backward_is_copied_whole_and_makes_captures_block(
    tmp_path: Path, patient: None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 1))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    said: list[str] = []
    released = -1
    arena = Arena(tmp_path, 0, 1, released=lambda: released)
    capture = Capture(arena, list(optimizers.values()), model, say=said.append)
    share = Share(tuple(part(n, p) for n, p in model.named_parameters()), (), None)
    for step in (1, 2):
        before = [p.detach().numpy().tobytes() for p in model.parameters()]
        capture.begin(step, share)
        model(torch.randn(3, 4)).pow(2).sum().backward()
        capture.finish()
        assert [bytes(b) for b in read_slot(tmp_path, 0, step).buffers] == before
        released = step
    assert capture.mode == "blocking"
    assert len(said) == 1 and "an optimizer steps during backward" in said[0]
    capture.close()


def test_an_optimizer_that_nobody_named_is_waited_for_too(job: Job, slow: Slow) -> None:
    before = job.now()
    other = torch.optim.SGD(job.model.parameters(), lr=0.5)
    job.capture.begin(1, job.share())
    job.backward()
    stepping = threading.Thread(target=other.step)
    stepping.start()
    stepping.join(0.05)
    assert stepping.is_alive()
    slow.go.set()
    stepping.join(60)
    job.capture.finish()
    assert job.staged(1) == before


def test_a_closure_makes_captures_block(job: Job) -> None:
    def closure() -> torch.Tensor:
        loss: torch.Tensor = job.model(torch.randn(3, 4)).sum()
        return loss

    before = job.now()
    job.capture.begin(1, job.share())
    job.backward()
    job.optimizer.step(closure)  # type: ignore[arg-type]
    job.capture.finish()
    assert job.staged(1) == before
    assert job.capture.mode == "blocking"
    assert "a closure" in job.said[0]


class Renorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, max_norm=1.0)


def test_what_is_known_to_change_in_forward_blocks_from_the_start(tmp_path: Path) -> None:
    said: list[str] = []
    model = Renorm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    capture = Capture(Arena(tmp_path, 0, 1), [optimizer], model, say=said.append)
    assert capture.mode == "blocking"
    assert len(said) == 1 and "'embed' has max_norm" in said[0]
    lbfgs = Capture(Arena(tmp_path, 0, 1), [torch.optim.LBFGS(model.parameters())], say=said.append)
    assert lbfgs.mode == "blocking" and "a closure" in said[1]
    foreign = Capture(Arena(tmp_path, 0, 1), [object()], say=said.append)
    assert foreign.mode == "blocking" and "object is no torch optimizer" in said[2]


class Whiten(nn.Module):
    """A parametrization that moves its own parameter in every forward pass."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight.div_(weight.norm())
        return weight


def test_a_parametrization_that_updates_in_forward_is_found_before_the_first_capture(
    tmp_path: Path,
) -> None:
    model = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(model, "weight", Whiten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said: list[str] = []
    capture = Capture(Arena(tmp_path, 0, 1), [optimizer], model, say=said.append)
    assert capture.mode == "overlapped"
    share = Share(tuple(part(n, p) for n, p in model.named_parameters()), (), None)
    capture.rehearse(share)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert capture.mode == "blocking"
    assert "parametrizations.weight.original" in said[0]
    capture.close()


def test_a_rehearsal_of_an_ordinary_step_finds_nothing(job: Job) -> None:
    job.capture.rehearse(job.share())
    job.backward()
    job.optimizer.step()
    assert (job.capture.mode, job.said) == ("overlapped", [])


def test_a_last_capture_is_announced_on_return(job: Job) -> None:
    job.capture.begin(1, job.share())
    job.backward()
    job.optimizer.step()
    job.capture.begin(2, job.share(), is_last=True)
    assert job.staged(2) == job.now()
    assert is_staged(job, 1)
    assert read_slot(job.node_dir, 0, 2).step == 2


def test_what_is_held_is_announced_only_when_told(job: Job) -> None:
    before = job.now()
    job.capture.hold(1, job.share())
    edit_data(job.model[0].weight)
    assert (job.capture.held_step, is_staged(job, 1)) == (1, False)
    job.capture.announce_held()
    assert job.staged(1) == before
    assert job.capture.held_step is None


def test_a_state_whose_tensors_were_replaced_is_captured_as_it_is(job: Job) -> None:
    job.capture.begin(1, job.share())
    job.capture.finish()
    job.released = 1
    with torch.no_grad():
        job.model[0].weight.data = torch.full((16, 4), 3.0)
    steady = tuple(part(name, value) for name, value in job.tensors().items())
    job.capture.begin(2, Share(steady, (), None))
    job.capture.finish()
    assert job.staged(2) == job.now()


def test_python_runs_while_the_state_is_copied() -> None:
    """Were the interpreter's lock held for a chunk, another thread had one turn per chunk.

    On a busy machine the other thread may be kept from running by others, so one pass in
    which it ran is enough: with the lock held there is none.
    """
    tensor = torch.zeros(64 << 20, dtype=torch.uint8)
    copying = Copying([tensor], [torch.zeros_like(tensor)])
    num_chunks = tensor.nbytes // CHUNK_BYTES
    assert any(turns_while(copying.read) > 5 * num_chunks for _ in range(500))


def turns_while(work: Callable[[], object]) -> int:
    """How often this thread ran while another one did the work."""
    other = threading.Thread(target=work)
    turns = 0
    other.start()
    while other.is_alive():
        turns += 1
        time.sleep(0)
    return turns


def test_one_plan_is_used_again_as_long_as_the_tensors_lie_where_they_lay(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(8))
    share = Share((part("w", weight),), (), None)
    arena = Arena(tmp_path, 0, 1)
    first = arena.open(1, share, is_last=False)
    again = arena.open(2, share, is_last=False)
    assert again.steady is first.steady and again.staged.boxes is first.staged.boxes
    weight.data = torch.full((8,), 2.0)
    arena.stage(3, share, is_last=False)
    assert np.frombuffer(read_slot(tmp_path, 0, 3).buffers[0], np.float32).tolist() == [2.0] * 8


def test_the_first_capture_waits_for_no_page(tmp_path: Path) -> None:
    weight = torch.ones(4 << 20)
    share = Share((part("w", weight),), (), None)
    arena = Arena(tmp_path, 0, 1)
    arena.reserve(share)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arena.stage(1, share, is_last=False)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < weight.nbytes // mmap.PAGESIZE // 4
    assert (tmp_path / "rank-0.slot-0").stat().st_blocks * 512 <= 1.05 * weight.nbytes


def test_a_capture_that_nobody_holds_lets_its_memory_go(tmp_path: Path) -> None:
    others = set(threading.enumerate())
    job = Job(tmp_path)
    job.capture.begin(1, job.share())
    job.capture.finish()
    arena = weakref.ref(job.arena)
    (thread,) = set(threading.enumerate()) - others
    del job
    gc.collect()
    thread.join(60)
    gc.collect()
    assert arena() is None


SHARDED = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.state import TrainingState

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
for layer in model:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), fused=sys.argv[2] == "fused")
state = TrainingState(model, optimizer, {}, rank=rank, world_size=world_size)
node_dir = Path(sys.argv[1])
released = [-1]
arena = Arena(node_dir, rank, world_size, released=lambda: released[0])
capture = Capture(arena, [optimizer], model)
model(torch.randn(5, 6)).pow(2).sum().backward()
optimizer.step()
capture.rehearse(state.share(0))
def values(parts):
    return {p.name: p.tensor.detach().numpy().tobytes() for p in parts}
for step in range(1, 6):
    optimizer.zero_grad()
    model(torch.randn(5, 6)).pow(2).sum().backward()
    optimizer.step()
    share = state.share(step)
    before = {**values(share.steady), **values(share.volatile)}
    capture.begin(step, share)
    optimizer.zero_grad()
    model(torch.randn(5, 6)).pow(2).sum().backward()
    optimizer.step()
    capture.finish()
    read = read_slot(node_dir, rank, step)
    after = {b.name: bytes(data) for b, data in zip(read.boxes, read.buffers, strict=True)}
    assert after == before, sorted(n for n in before if after[n] != before[n])
    assert values(share.steady).items() - before.items()
    released[0] = step
share = state.share(9)
capture.begin(9, share)
optimizer.zero_grad()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.to_local().mul_(1.5)
model(torch.randn(5, 6)).pow(2).sum().backward()
optimizer.step()
capture.finish()
print("mode", capture.mode, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_sharded_parameters_are_captured_of_one_moment(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script), str(tmp_path), kind],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split("\n")) - {""} <= {"mode overlapped", "mode blocking"}


VICTIM = """
import sys, threading, torch
from pathlib import Path
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.flight import Lost
from cloudshift_lab.training.copying import CHUNK_BYTES, Copying
from cloudshift_lab.training.parts import Part, Share

weight = torch.ones(1000, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
released = [-1]
arena = Arena(Path(sys.argv[1]), 0, 1, released=lambda: released[0])
capture = Capture(arena, [optimizer])
share = Share((Part("w", weight, (1000,), (0,)),), (), None)
capture.begin(1, share)
capture.finish()
released[0] = 1
read = Copying.read
def half(self):
    if threading.current_thread().name != "cloudshift-capture":
        return read(self)
    self._moves[0] = (*self._moves[0][:2], 2000)
    read(self)
    print("half", flush=True)
    threading.Event().wait()
Copying.read = half
with torch.no_grad():
    weight.fill_(2.0)
capture.begin(2, share)
threading.Event().wait()
"""


def test_a_rank_killed_in_the_middle_of_a_copy_leaves_nothing_that_looks_complete(
    tmp_path: Path,
) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "half\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    data = np.frombuffer((tmp_path / "rank-0.slot-0").read_bytes(), dtype=np.float32)[:1000]
    assert set(data.tolist()) == {1.0, 2.0}
    for step in (1, 2):
        with pytest.raises(NotFound):
            read_slot(tmp_path, 0, step)
