"""What each rank does in the tests: python checkpoints_ranks.py ACTION KIND URL."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cloudshift_lab.core.errors import CloudshiftError, Exhausted, UsageError
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.checkpoints import CheckpointManager, PerRank
from cloudshift_lab.training.place import Place

ROWS = 31


def build(kind: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model: nn.Module = nn.Sequential(nn.Linear(8, ROWS), nn.GELU(), nn.Linear(ROWS, 5))
    if kind == "fsdp2":
        fully_shard(model)
    elif kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(5)
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def flat(state: Any, path: str = "") -> dict[str, np.ndarray]:
    """Every tensor of a state, whole, by name."""
    if isinstance(state, dict):
        found: dict[str, np.ndarray] = {}
        for key, value in state.items():
            found |= flat(value, f"{path}.{key}")
        return found
    if isinstance(state, DTensor):
        state = state.full_tensor()
    return {path: state.numpy(force=True).copy()} if isinstance(state, torch.Tensor) else {}


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    inner = getattr(model, "module", model)
    return flat({"model": dict(inner.state_dict()), "optimizer": optimizer.state_dict()})


def save(kind: str, url: str) -> None:
    model, optimizer = build(kind, 0)
    manager = CheckpointManager(url, "ranks", save_policy="1")
    manager.attach(optimizer, model)
    state = {"model": model, "optimizer": optimizer, "who": PerRank(dist.get_rank())}
    for step in (1, 2, 3):
        train(model, optimizer)
        manager.save(step, state)
    manager.wait_until_finished()
    whole = everything(model, optimizer)
    if dist.get_rank() == 0:
        np.savez(url.removeprefix("file://") + ".npz", **whole)
    manager.close()


def check(kind: str, url: str) -> None:
    model, optimizer = build(kind, 7)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "who": PerRank(-1)}
    manager = CheckpointManager(url, "ranks")
    assert manager.restore("latest", state) == 3
    assert state["who"].value == dist.get_rank()
    found, saved = everything(model, optimizer), np.load(url.removeprefix("file://") + ".npz")
    assert found.keys() == set(saved) and len(found) > 10
    for name, array in found.items():
        assert array.dtype == saved[name].dtype and (array == saved[name]).all(), name
    train(model, optimizer)


def timed(kind: str, url: str) -> None:
    model, optimizer = build(kind, 0)
    manager = CheckpointManager(url, "ranks", save_policy="1s")
    step, stop = 0, torch.zeros(1)
    while not stop.item():
        step += 1
        train(model, optimizer)
        manager.save(step, {"model": model, "optimizer": optimizer})
        time.sleep(0.05)
        stop.fill_(float(dist.get_rank() == 0 and len(manager.all_steps()) >= 2))
        dist.broadcast(stop, 0)
    manager.close()


def stumble(kind: str, url: str) -> None:
    """Rank 0 hears of a failure twice and goes on; all ranks save the same steps all the same."""
    model, optimizer = build(kind, 0)
    manager = CheckpointManager(url, "ranks", save_policy="1s")
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    saved: list[int] = []
    step, told, stop = 0, 0, torch.zeros(1)
    while not stop.item():
        step += 1
        train(model, optimizer)
        if dist.get_rank() == 0 and step in (4, 8):
            works = manager._works
            assert works is not None
            works.background.failure = CloudshiftError("the store was away")
        if step == 8 and dist.get_rank() == 1:
            state["bad"] = object()
        try:
            handle = manager.save(step, state, force=step in (2, 8))
            saved += [] if handle.is_skipped else [step]
        except CloudshiftError:
            told += 1
        state.pop("bad", None)
        time.sleep(0.05)
        stop.fill_(float(len(saved) >= 3))
        dist.broadcast(stop, 0)
    manager.close()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (saved, told))
    assert [steps for steps, _ in everyone] == [saved] * len(everyone), everyone
    assert everyone[0][1] == 2 and everyone[1][1] == 1, everyone
    assert 8 not in saved and manager.all_steps() == saved


def refused(kind: str, url: str) -> None:
    """Rank 1 alone has no place, a step too early, no room: no rank saves, and each says why."""
    model, optimizer = build(kind, 0)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    alone = dist.get_rank() == 1
    taken = Place(open_store(url).url, "ranks", 1) if alone else None
    manager = CheckpointManager(url, "ranks", save_policy="1")
    manager.attach(optimizer, model)
    train(model, optimizer)
    told: list[str] = []

    def try_to_save(step: int) -> None:
        try:
            manager.save(step, state)
        except CloudshiftError as error:
            told.append(f"{type(error).__name__}: {error.message}")

    try_to_save(1)
    if taken is not None:
        taken.remove()
    try_to_save(2)
    manager.wait_until_finished()
    try_to_save(2)
    if alone:
        state["bad"] = object()
    try_to_save(3)
    state.pop("bad", None)
    if alone:
        arena = manager._works._arena  # type: ignore[union-attr]
        whole, arena.reserve = arena.reserve, full  # type: ignore[method-assign]
    try_to_save(4)
    if alone:
        arena.reserve = whole  # type: ignore[method-assign]
    try_to_save(5)
    manager.close()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, told)
    assert manager.all_steps() == [2, 5], manager.all_steps()
    kinds = [[line.partition(":")[0] for line in lines] for lines in everyone]
    assert kinds == [["Conflict", "UsageError", "UsageError", "Exhausted"]] * len(everyone), kinds
    for who, step in (("rank 1", 0), ("rank 1", 2), ("rank 1", 3)):
        assert who in everyone[0][step], everyone[0]
    assert "has step 2 already" in everyone[1][1], everyone[1]


def full(share: object) -> None:
    del share
    raise Exhausted("no space left in shared memory; enlarge it", num_bytes=1)


def asked(kind: str, url: str) -> None:
    """Whether to save is asked first, by a policy of time; all ranks hear the same."""
    model, optimizer = build(kind, 0)
    manager = CheckpointManager(url, "ranks", save_policy="1s", keep="all")
    answers: list[bool] = []
    step, stop = 0, torch.zeros(1)
    while not stop.item():
        step += 1
        train(model, optimizer)
        answers.append(manager.should_save(step))
        if answers[-1]:
            assert manager.should_save(step)
            manager.save(step, {"model": model, "optimizer": optimizer})
            assert not manager.should_save(step)
        time.sleep(0.05 * (1 + dist.get_rank()))
        stop.fill_(float(dist.get_rank() == 0 and sum(answers) >= 2))
        dist.broadcast(stop, 0)
    manager.close()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, answers)
    assert everyone == [answers] * len(everyone), everyone
    assert manager.all_steps() == [n for n, due in enumerate(answers, start=1) if due]


def odd(kind: str, url: str) -> None:
    del kind
    manager = CheckpointManager(url, "ranks", save_policy="1")
    try:
        manager.save(1, {f"mine-{dist.get_rank()}": torch.ones(2)})
    except UsageError as error:
        print(error.message, flush=True)


if __name__ == "__main__":
    action, kind, url = sys.argv[1:]
    dist.init_process_group("gloo")
    {
        "save": save,
        "check": check,
        "timed": timed,
        "odd": odd,
        "stumble": stumble,
        "refused": refused,
        "asked": asked,
    }[action](kind, url)
    dist.destroy_process_group()
