"""What a rank finds of its model and optimizers, and how cheaply it looks again."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.inventory import canonical
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.plan import SharePlan
from cloudshift_lab.training.state import TrainingState, unwrap
from cloudshift_lab.training.tree import pull_tensors, push_tensors, tensor_names, to_torch


def test_a_tree_comes_back_with_its_types() -> None:
    tree = {
        "t": torch.arange(3), 7: (1, [2.5, None]), "a": np.array([[1, 2]], dtype=np.uint32),
        "s": np.float64(0.5), "fake": ("cloudshift", "x"),
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    pulled = pull_tensors(tree, "root", tensors)
    back = push_tensors(pulled, tensors)
    assert isinstance(back, dict)
    assert list(tensors) == ["root/t"] == list(tensor_names(pulled))
    assert torch.equal(back["t"], tree["t"])  # type: ignore[arg-type]
    assert back[7] == (1, [2.5, None])
    assert back["a"].dtype == np.uint32 and back["a"].tolist() == [[1, 2]]
    assert (back["s"], back["fake"]) == (0.5, ("cloudshift", "x"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "int64", "bool"])
def test_what_the_reader_gives_becomes_a_tensor_of_the_saved_dtype(dtype: str) -> None:
    value = (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, dtype))
    width = value.element_size()
    shown = {1: np.uint8, 2: np.uint16, 8: np.int64}[width] if dtype != "bool" else np.bool_
    array = value.view(torch.uint8).numpy().reshape(-1).view(shown).reshape(2, 3)
    back = to_torch(array.copy(), dtype)
    assert back.dtype == value.dtype
    assert torch.equal(back.view(torch.uint8), value.view(torch.uint8))


def trained(width: int = 6) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def of(model: nn.Module, optimizer: Any, rank: int = 0, world_size: int = 1, **extra: Any) -> Any:
    return TrainingState(model, optimizer, extra, rank=rank, world_size=world_size)


def names(share: Share) -> set[str]:
    return {part.name for part in (*share.steady, *share.volatile)}


def now(share: Share, name: str) -> torch.Tensor:
    return next(p.tensor for p in (*share.steady, *share.volatile) if p.name == name)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[SharePlan]:
    made: list[SharePlan] = []
    build = SharePlan.__init__

    def counting(self: SharePlan, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(SharePlan, "__init__", counting)
    return made


def test_parameters_and_their_states_are_steady_the_rest_is_volatile() -> None:
    model, optimizer = trained()
    share = of(model, optimizer).share(1)
    assert {p.name.partition("/")[0] for p in share.steady} == {"model", "optimizer"}
    assert {p.name for p in share.volatile} == {
        "model/1.running_mean", "model/1.running_var", "model/1.num_batches_tracked", "rng/0",
    }  # fmt: skip
    assert now(share, "model/0.weight").data_ptr() == model[0].weight.data_ptr()


def test_two_ranks_share_the_tensors_and_each_knows_the_whole_catalog() -> None:
    model, optimizer = trained()
    shares = [of(model, optimizer, rank, 2).share(1) for rank in range(2)]
    whole = names(of(model, optimizer).share(1))
    assert names(shares[0]) & names(shares[1]) == set()
    assert names(shares[0]) | names(shares[1]) == whole | {"rng/1"}
    assert shares[0].catalog == shares[1].catalog
    assert {spec.name for spec in shares[0].catalog} == whole - {"rng/0"}


def test_the_state_bytes_are_those_of_all_ranks_together() -> None:
    model, optimizer = trained()
    states = [of(model, optimizer, rank, 3) for rank in range(3)]
    assert {s.state_bytes for s in states} == {sum(s.share(1).num_bytes for s in states)}


def test_a_step_that_replaces_nothing_uses_the_same_plan(plans: list[SharePlan]) -> None:
    model, optimizer = trained()
    state = of(model, optimizer)
    before = state.share(1)
    step(model, optimizer)
    after = state.share(2)
    assert len(plans) == 1
    assert before.steady is after.steady
    assert torch.equal(now(after, "model/0.weight"), model[0].weight)
    assert after.leaves["step"] == 2


def replace_memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    model[0].weight.data = model[0].weight.data.clone()
    return "model/0.weight"


def replace_parameter(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    model[0].bias = nn.Parameter(torch.ones(6))
    return "model/0.bias"


def replace_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    optimizer.state[model[2].weight]["exp_avg"] = torch.ones(3, 6)
    return "optimizer/2.weight/exp_avg"


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return "optimizer/2.weight/exp_avg"


def add_module(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    model.add_module("adapter", nn.Linear(2, 2))
    return "model/adapter.weight"


def add_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    return "loose/param-1-0"


CHANGES = [replace_memory, replace_parameter, replace_state, load_state, add_module, add_group]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_takes_another_tensors_place_is_found(change: Any, plans: list[SharePlan]) -> None:
    model, optimizer = trained()
    state = of(model, optimizer)
    old = {p.name: p.tensor.data_ptr() for p in state.share(1).steady}
    name = change(model, optimizer)
    share = state.share(2)
    assert len(plans) == 2
    assert now(share, name).data_ptr() != old.get(name)
    wanted = {**model.state_dict(), "param-1-0": torch.ones(2)}
    key = name.removeprefix("model/").removeprefix("loose/")
    if key in wanted:
        assert torch.equal(now(share, name), wanted[key])


def test_a_buffer_that_is_assigned_anew_is_taken_as_it_is_now(plans: list[SharePlan]) -> None:
    model, optimizer = trained()
    state = of(model, optimizer)
    state.share(1)
    model[1].running_mean = torch.full((6,), 5.0)
    assert now(state.share(2), "model/1.running_mean").tolist() == [5.0] * 6
    assert len(plans) == 1
    model[1].running_mean = torch.full((7,), 5.0)
    assert now(state.share(3), "model/1.running_mean").shape == (7,)
    assert len(plans) == 2


def test_leaves_do_not_change_after_the_share_was_taken() -> None:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    state = of(model, optimizer, scheduler=scheduler)
    share = state.share(1)
    before = encode_leaves(share.leaves)
    step(model, optimizer)
    scheduler.step()
    optimizer.param_groups[0]["lr"] = 9.0
    state.share(2)
    assert encode_leaves(share.leaves) == before


def test_hyperparameters_are_leaves_by_name() -> None:
    model, optimizer = trained()
    groups = of(model, optimizer).share(1).leaves["optimizer"]["groups"]
    assert groups[0]["values"]["lr"] == 0.1
    assert groups[0]["names"][0] == "0.weight"


def test_tied_weights_are_staged_once() -> None:
    model = nn.Module()
    model.embed = nn.Embedding(10, 4)
    model.head = nn.Linear(4, 10, bias=False)
    model.head.weight = model.embed.weight
    share = of(model, torch.optim.SGD(model.parameters())).share(1)
    assert [part.name for part in share.steady] == ["model/embed.weight"]
    assert share.leaves["model"]["aliases"] == {"head.weight": "embed.weight"}


def test_a_state_that_is_made_later_is_found_when_it_is_there() -> None:
    model = nn.ModuleDict({"base": nn.Linear(3, 3), "adapter": nn.Linear(3, 3)})
    model["base"].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    state = of(model, optimizer)
    assert {p.name.split("/")[0] for p in state.share(1).steady} == {"model"}
    model["adapter"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = {p.name for p in state.share(2).steady if p.name.startswith("optimizer/")}
    assert {name.split("/")[1] for name in found} == {"adapter.weight", "adapter.bias"}


def test_a_parameter_of_two_optimizers_is_refused() -> None:
    model = nn.Linear(2, 2)
    twice = [torch.optim.SGD(model.parameters()), torch.optim.SGD([model.weight])]
    with pytest.raises(UsageError, match="'weight' belongs to two optimizers"):
        of(model, twice)


def test_names_are_those_the_researcher_gave() -> None:
    inner = nn.Linear(2, 2)
    compiled = nn.Module()
    compiled._orig_mod = inner
    assert unwrap(compiled) is inner
    assert canonical("a._orig_mod.b._checkpoint_wrapped_module.weight") == "a.b.weight"
    assert canonical("_orig_mod.weight") == "weight"
    assert canonical("my_orig_mod.weight") == "my_orig_mod.weight"


def test_a_large_replicated_tensor_is_staged_in_parts_by_reference() -> None:
    model = nn.Embedding(120_000, 64)
    shares = [of(model, torch.optim.SGD(model.parameters()), rank, 4).share(1) for rank in range(4)]
    parts = [part for share in shares for part in share.steady]
    assert sum(math.prod(part.tensor.shape) for part in parts) == model.weight.numel()
    for part in parts:
        rows = slice(part.offset[0], part.offset[0] + part.tensor.shape[0])
        assert part.tensor.data_ptr() == model.weight[rows].data_ptr()
    assert max(s.num_bytes for s in shares) < 1.2 * min(s.num_bytes for s in shares)


def test_a_model_that_no_checkpoint_holds_is_refused_by_the_name_of_its_tensor() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    with pytest.raises(UsageError, match=r"model/weight, a tensor on the meta device"):
        TrainingState(model, torch.optim.SGD(model.parameters()), {}, rank=0, world_size=1)
