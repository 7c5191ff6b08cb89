"""The slots in shared memory: what lies in them, when they are taken and when given back."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.errors import Conflict, Exhausted, UsageError
from cloudshift_lab.training import arena as arena_module
from cloudshift_lab.training import slot as slot_module
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.parts import Part, Share
from cloudshift_lab.training.tree import to_torch


class Agent:
    """Releases steps, and hears what is said."""

    def __init__(self, node_dir: Path) -> None:
        self.released = -1
        self.said: list[str] = []
        self.arena = Arena(
            node_dir, 0, 1, released=lambda: self.released, say=self.said.append
        )  # fmt: skip


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def whole(name: str, tensor: torch.Tensor) -> Part:
    return Part(name, tensor, tuple(tensor.shape), (0,) * tensor.dim())


def share(leaves: object = None, **tensors: torch.Tensor) -> Share:
    return Share(tuple(whole(n, t) for n, t in tensors.items()), (), leaves)


def full(value: float, size: int = 8) -> Share:
    return share(v=torch.full((size,), value))


def staged(node_dir: Path, step: int) -> list[float]:
    data = read_slot(node_dir, 0, step).buffers[0]
    return np.frombuffer(data, dtype=np.float32).tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "int64", "bool"])
def test_every_dtype_survives_the_way_through_the_slot(
    agent: Agent, tmp_path: Path, dtype: str
) -> None:
    torch.manual_seed(1)
    value = (torch.randn(3, 5) * 4).to(getattr(torch, dtype))
    agent.arena.stage(1, share(v=value, e=value[:0]), is_last=False)
    read = read_slot(tmp_path, 0, 1)
    assert [box.name for box in read.boxes] == ["v", "e"]
    width = value.element_size()
    shown = {1: np.uint8, 2: np.uint16, 8: np.int64}[width] if dtype != "bool" else np.bool_
    array = np.frombuffer(read.buffers[0], dtype=shown).reshape(3, 5)
    back = to_torch(array.copy(), dtype)
    assert back.dtype == value.dtype
    assert torch.equal(back.view(torch.uint8), value.contiguous().view(torch.uint8))


def test_views_that_are_not_contiguous_are_staged_in_c_order(agent: Agent, tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4).t()
    complex_ = torch.tensor([1 + 2j]).conj()
    agent.arena.stage(1, share(v=value, c=complex_, s=torch.tensor(7.0)), is_last=False)
    buffers = read_slot(tmp_path, 0, 1).buffers
    assert np.frombuffer(buffers[0], dtype=np.float32).tolist() == value.flatten().tolist()
    assert np.frombuffer(buffers[1], dtype=np.complex64).tolist() == [1 - 2j]
    assert np.frombuffer(buffers[2], dtype=np.float32).tolist() == [7.0]


def test_a_box_of_a_larger_tensor_says_where_it_lies(agent: Agent, tmp_path: Path) -> None:
    part = Part("w", torch.arange(6.0).reshape(2, 3), (8, 3), (4, 0))
    agent.arena.stage(1, Share((), (part,), {}), is_last=False)
    box = read_slot(tmp_path, 0, 1).boxes[0]
    assert (box.global_shape, box.offset, box.shape) == ((8, 3), (4, 0), (2, 3))


def test_the_same_memory_is_filled_again_once_a_step_is_released(
    agent: Agent, tmp_path: Path
) -> None:
    value = torch.zeros(8)
    for step in range(1, 5):
        value.fill_(step)
        agent.arena.stage(step, share(v=value), is_last=False)
        if step == 1:
            inode = (tmp_path / "rank-0.slot-0").stat().st_ino
        assert staged(tmp_path, step) == [float(step)] * 8
        agent.released = step
    assert (tmp_path / "rank-0.slot-0").stat().st_ino == inode
    assert not (tmp_path / "rank-0.slot-1").exists()


def test_a_step_that_is_not_released_is_not_written_over(agent: Agent, tmp_path: Path) -> None:
    agent.arena.stage(1, full(1.0), is_last=False)
    assert agent.arena.is_busy
    with pytest.raises(Conflict, match="step 1 is not saved yet"):
        agent.arena.stage(2, full(2.0), is_last=False)
    assert staged(tmp_path, 1) == [1.0] * 8
    agent.released = 1
    assert not agent.arena.is_busy


def test_a_last_step_has_a_slot_of_its_own_while_the_one_before_is_saved(
    agent: Agent, tmp_path: Path
) -> None:
    agent.arena.stage(1, full(1.0), is_last=False)
    agent.arena.stage(2, full(2.0), is_last=True)
    assert (staged(tmp_path, 1), staged(tmp_path, 2)) == ([1.0] * 8, [2.0] * 8)


def test_the_second_slot_is_given_back_when_training_goes_on(agent: Agent, tmp_path: Path) -> None:
    agent.arena.stage(1, full(1.0), is_last=False)
    agent.arena.stage(2, full(2.0), is_last=True)
    agent.released = 2
    agent.arena.stage(3, full(3.0), is_last=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rank-0.slot-0", "rank-0.slot-0.json"}


def test_a_state_that_grows_gets_new_memory(agent: Agent, tmp_path: Path) -> None:
    agent.arena.stage(1, full(1.0, 2), is_last=False)
    old = read_slot(tmp_path, 0, 1)
    agent.released = 1
    agent.arena.stage(2, full(3.0, 4000), is_last=False)
    assert len(read_slot(tmp_path, 0, 2).buffers[0]) == 16000
    assert np.frombuffer(old.buffers[0], dtype=np.float32).tolist() == [1.0, 1.0]


def test_reserved_memory_is_the_memory_of_the_first_capture(agent: Agent, tmp_path: Path) -> None:
    agent.arena.reserve(full(1.0, 4000))
    reserved = (tmp_path / "rank-0.slot-0").stat()
    assert reserved.st_blocks * 512 >= 16000
    agent.arena.stage(1, full(2.0, 4000), is_last=False)
    assert (tmp_path / "rank-0.slot-0").stat().st_ino == reserved.st_ino


def test_a_leaf_that_cannot_be_held_leaves_the_slot_alone(agent: Agent, tmp_path: Path) -> None:
    agent.arena.stage(1, full(1.0), is_last=False)
    agent.released = 1
    with pytest.raises(UsageError, match=r"leaves\.a\[1\]"):
        agent.arena.stage(2, share({"a": [0, print]}, v=torch.ones(8)), is_last=False)
    assert staged(tmp_path, 1) == [1.0] * 8


def no_room(_descriptor: int, _num_bytes: int) -> None:
    raise OSError(28, "No space left on device")


def test_full_shared_memory_is_said_before_anything_is_written(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_module, "take", no_room)
    with pytest.raises(
        Exhausted, match=r"no space left in shared memory.*enlarge the shared memory"
    ):
        agent.arena.stage(1, full(1.0), is_last=True)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_without_room_for_both_the_last_step_waits_for_the_release_of_the_one_before(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "SAY_EVERY_S", 0.0)
    agent.arena.stage(1, full(1.0), is_last=False)
    monkeypatch.setattr(slot_module, "take", no_room)
    waiter = threading.Thread(target=lambda: agent.arena.stage(2, full(2.0), is_last=True))
    waiter.start()
    while not any("for step 1 to be saved" in line for line in agent.said):
        waiter.join(0.01)
    assert staged(tmp_path, 1) == [1.0] * 8
    agent.released = 1
    waiter.join(30)
    assert staged(tmp_path, 2) == [2.0] * 8


def test_a_dropped_step_is_gone_and_makes_room(agent: Agent, tmp_path: Path) -> None:
    agent.arena.stage(1, full(1.0), is_last=False)
    agent.arena.drop()
    assert (agent.arena.is_busy, agent.arena.staged_step) == (False, None)
    assert not (tmp_path / "rank-0.slot-0.json").exists()
    agent.arena.stage(2, full(2.0), is_last=False)
    assert staged(tmp_path, 2) == [2.0] * 8
