"""Names, sharing, tags: the pieces of which a capture is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.checkpoint import open_checkpoint, seal, write_rank
from cloudshift_lab.core.errors import Exhausted
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.training import arena as arena_module
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.shares import share_of, share_out
from cloudshift_lab.training.state import TrainingState, unwrap
from cloudshift_lab.training.tree import pull_tensors, push_tensors, to_torch


@given(st.dictionaries(st.text(max_size=4), st.integers(0, 10**9), max_size=40), st.integers(1, 8))
def test_shares_differ_by_at_most_the_largest_tensor(
    sizes: dict[str, int], world_size: int
) -> None:
    owner = share_out(sizes, world_size)
    load = [sum(sizes[n] for n, r in owner.items() if r == rank) for rank in range(world_size)]
    assert owner.keys() == sizes.keys()
    assert max(load) - min(load) <= max(sizes.values(), default=0)


def test_every_tensor_is_staged_by_exactly_one_rank_and_buffers_by_rank_zero() -> None:
    weights = {f"w{i}": torch.zeros(i + 1) for i in range(9)}
    buffers = {"b": torch.zeros(100)}
    shares = [
        share_of(rank, 3, replicated=weights, rank0=buffers, own={f"rng/{rank}": torch.zeros(1)})
        for rank in range(3)
    ]
    names = [name for share in shares for name in share]
    assert sorted(names) == sorted([*weights, "b", "rng/0", "rng/1", "rng/2"])
    assert "b" in shares[0]


def test_a_tree_comes_back_with_its_types() -> None:
    tree = {
        "t": torch.arange(3), 7: (1, [2.5, None]), "a": np.array([[1, 2]], dtype=np.uint32),
        "s": np.float64(0.5), "fake": ("cloudshift", "x"),
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    back = push_tensors(pull_tensors(tree, "root", tensors), tensors)
    assert isinstance(back, dict)
    assert list(tensors) == ["root/t"]
    assert torch.equal(back["t"], tree["t"])  # type: ignore[arg-type]
    assert back[7] == (1, [2.5, None])
    assert back["a"].dtype == np.uint32 and back["a"].tolist() == [[1, 2]]
    assert (back["s"], back["fake"]) == (0.5, ("cloudshift", "x"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "int64", "bool"])
def test_every_dtype_survives_the_way_through_the_slot(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(1)
    value = (torch.randn(3, 5) * 4).to(getattr(torch, dtype))
    Arena(tmp_path, 0, 1).stage(1, {"v": value, "e": value[:0]}, {}, is_last=False)
    staged = read_slot(tmp_path, 0, 1)
    names = [box.name for box in staged.boxes]
    assert names == ["v", "e"]
    width = value.element_size()
    shown = {1: np.uint8, 2: np.uint16, 8: np.int64}[width] if dtype != "bool" else np.bool_
    array = np.frombuffer(staged.buffers[0], dtype=shown).reshape(3, 5)
    back = to_torch(array.copy(), dtype)
    assert back.dtype == value.dtype
    assert torch.equal(back.view(torch.uint8), value.contiguous().view(torch.uint8))


def test_views_that_are_not_contiguous_are_staged_in_c_order(tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4).t()
    Arena(tmp_path, 0, 1).stage(1, {"v": value, "scalar": torch.tensor(7.0)}, {}, is_last=False)
    staged = read_slot(tmp_path, 0, 1)
    assert np.frombuffer(staged.buffers[0], dtype=np.float32).tolist() == value.flatten().tolist()
    assert np.frombuffer(staged.buffers[1], dtype=np.float32).tolist() == [7.0]


def test_staging_again_keeps_the_newest_complete_step_whole(tmp_path: Path) -> None:
    arena = Arena(tmp_path, 0, 1)
    for step in range(1, 5):
        arena.stage(step, {"v": torch.full((8,), float(step))}, {}, is_last=False)
        assert list(read_slot(tmp_path, 0, step).buffers[0][:4]) == list(np.float32(step).tobytes())
    first = np.frombuffer(read_slot(tmp_path, 0, 3).buffers[0], dtype=np.float32)
    assert first.tolist() == [3.0] * 8


def test_a_state_that_grows_gets_new_memory(tmp_path: Path) -> None:
    arena = Arena(tmp_path, 0, 1)
    arena.stage(1, {"v": torch.ones(2)}, {}, is_last=False)
    arena.stage(2, {"v": torch.ones(2)}, {}, is_last=False)
    old = read_slot(tmp_path, 0, 1)
    arena.stage(3, {"v": torch.full((4000,), 3.0)}, {}, is_last=False)
    assert len(read_slot(tmp_path, 0, 3).buffers[0]) == 16000
    assert np.frombuffer(old.buffers[0], dtype=np.float32).tolist() == [1.0, 1.0]


def test_full_shared_memory_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arena_module, "_take", full)
    with pytest.raises(Exhausted, match="twice its share"):
        Arena(tmp_path, 0, 1).stage(1, {"v": torch.ones(2)}, {}, is_last=False)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_tied_weights_are_staged_once() -> None:
    model = nn.Module()
    model.embed = nn.Embedding(10, 4)
    model.head = nn.Linear(4, 10, bias=False)
    model.head.weight = model.embed.weight
    state = TrainingState(model, torch.optim.SGD(model.parameters()), {}, rank=0, world_size=1)
    gathered = state.gather(1)
    assert list(gathered.replicated) == ["model/embed.weight"]
    assert gathered.leaves["model"]["aliases"] == {"head.weight": "embed.weight"}


def test_names_are_those_of_the_inner_module() -> None:
    inner = nn.Linear(2, 2)
    compiled = nn.Module()
    compiled._orig_mod = inner
    assert unwrap(compiled) is inner


def trained(seed: int) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (seed + 1))
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_what_two_ranks_saved_can_be_restored_by_one(tmp_path: Path) -> None:
    store = MemoryStore()
    model, optimizer = trained(0)
    written = []
    for rank in range(2):
        state = TrainingState(model, optimizer, {}, rank=rank, world_size=2).gather(4)
        share = share_of(
            rank, 2, replicated=state.replicated, rank0=state.rank0, own=state.own
        )  # fmt: skip
        Arena(tmp_path, rank, 2).stage(4, share, state.leaves, is_last=True)
        written.append(write_rank(store, "run", read_slot(tmp_path, rank, 4), generation=1))
    sealed = seal(store, "run", 4, generation=1, world_size=2, written=written)
    other, other_optimizer = trained(1)
    TrainingState(other, other_optimizer, {}, rank=0, world_size=1).restore(
        open_checkpoint(store, "run", sealed.manifest_key, digest=sealed.manifest_digest)
    )
    assert torch.equal(other.weight, model.weight)
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    ours, theirs = other_optimizer.state[other.weight], optimizer.state[model.weight]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
