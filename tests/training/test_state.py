"""Names, sharing, tags: the pieces of which a capture is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloudshift_lab.checkpoint import open_checkpoint, seal, write_rank
from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.shares import share_of, share_out
from cloudshift_lab.training.state import TrainingState, unwrap
from cloudshift_lab.training.tree import pull_tensors, push_tensors


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
        share = TrainingState(model, optimizer, {}, rank=rank, world_size=2).share(4)
        Arena(tmp_path, rank, 2).stage(4, share, is_last=True)
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
