"""What each rank does in the tests of DCP: python dcp_ranks.py ACTION KIND URL."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cloudshift_lab.training import stager as stager_module
from cloudshift_lab.training.dcp import ArenaStager, CasStorageReader, CasStorageWriter

ROWS = 31


def build(kind: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model: nn.Module = nn.Sequential(nn.Linear(8, ROWS), nn.GELU(), nn.Linear(ROWS, 5))
    if kind == "fsdp2":
        fully_shard(model)
    elif kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(5)
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def gathered(state: Any) -> Any:
    """The same with whole tensors."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return state


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    sd_model, sd_optim = get_state_dict(model, optimizer)
    return {"model": sd_model, "optim": sd_optim, "n": {"seen": (1, "two")}}


def flat(state: Any, path: str = "") -> dict[str, np.ndarray]:
    """The tensors and numbers of a state by name."""
    if isinstance(state, dict):
        found: dict[str, np.ndarray] = {}
        for key, value in state.items():
            found |= flat(value, f"{path}.{key}")
        return found
    return {path: np.asarray(state)} if isinstance(state, torch.Tensor | float | bool) else {}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def save(kind: str, url: str) -> None:
    model, optimizer = build(kind, 0)
    train(model, optimizer)
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=CasStorageWriter(url, "ranks", step=1))
    whole = flat(gathered(state))
    if dist.get_rank() == 0:
        np.savez(url.removeprefix("file://") + ".npz", **whole)


def check(kind: str, url: str) -> None:
    """The state of the ranks that saved equals what is loaded here."""
    model, optimizer = build(kind, 7)
    train(model, optimizer)
    wanted = state_of(model, optimizer)
    dcp.load(wanted, storage_reader=CasStorageReader(url, "ranks"))
    set_state_dict(
        model, optimizer, model_state_dict=wanted["model"], optim_state_dict=wanted["optim"]
    )
    loaded = gathered(state_of(model, optimizer))
    assert wanted["n"] == {"seen": (1, "two")}
    found, saved = flat(loaded), np.load(url.removeprefix("file://") + ".npz")
    assert found.keys() == set(saved) and len(found) > 10
    for name, array in found.items():
        assert array.dtype == saved[name].dtype and (array == saved[name]).all(), name


def process(kind: str, url: str) -> None:
    model, optimizer = build(kind, 0)
    stager, writer = ArenaStager(), CasStorageWriter(url, "ranks")
    for _ in range(2):
        train(model, optimizer)
        dcp.async_save(
            state_of(model, optimizer), storage_writer=writer, async_stager=stager,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        ).result()  # fmt: skip
    before = gathered(state_of(model, optimizer))
    wanted = state_of(model, optimizer)
    train(model, optimizer)
    dcp.load(wanted, storage_reader=CasStorageReader(url, "ranks"))
    assert equal(gathered(wanted)["model"], before["model"])


def fail(kind: str, url: str) -> None:
    model, optimizer = build(kind, 0)
    state = {**state_of(model, optimizer), f"rank-{dist.get_rank()}": "fine"}
    bad = {**state, "rank-1": object()} if dist.get_rank() == 1 else state
    writer = CasStorageWriter(url, "ranks", step=1)
    try:
        dcp.save(bad, storage_writer=writer)
    except CheckpointException as error:
        assert list(error.failures) == [1], error
        told = torch.ones(1)
        dist.all_reduce(told)
        if dist.get_rank() == 0 and told.item() == dist.get_world_size():
            print("refused on both", flush=True)
    dcp.save(state, storage_writer=writer)


def torn(kind: str, url: str) -> None:
    """A copy is torn on rank 1 alone: the save fails on both, and the next one works."""
    model, optimizer = build(kind, 0)
    train(model, optimizer)
    stager, go, original = ArenaStager(optimizer), threading.Event(), stager_module._copy

    def slow(*args: Any) -> None:
        assert threading.current_thread() is threading.main_thread() or go.wait(60)
        original(*args)

    stager_module._copy = slow
    writer = CasStorageWriter(url, "ranks", step=1)
    saving = dcp.async_save(
        state_of(model, optimizer), storage_writer=writer, async_stager=stager,
        process_group=dist.new_group(backend="gloo"),
    )  # fmt: skip
    response = saving.upload_completion if hasattr(saving, "upload_completion") else saving
    if dist.get_rank() == 1:
        next(model.parameters()).data.mul_(2.0)
    go.set()
    try:
        response.result(timeout=60)
    except CheckpointException as error:
        assert list(error.failures) == [1] and "save again" in str(error), error
        told = torch.ones(1)
        dist.all_reduce(told)
        if dist.get_rank() == 0:
            print(f"refused on {int(told.item())}", flush=True)
    dcp.save(state_of(model, optimizer), storage_writer=writer)


if __name__ == "__main__":
    action, kind, url = sys.argv[1:]
    dist.init_process_group("gloo")
    {"save": save, "check": check, "process": process, "fail": fail, "torn": torn}[action](
        kind, url
    )
    dist.destroy_process_group()
