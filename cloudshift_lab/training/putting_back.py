"""Gives a stored state back to the objects it came from, at any world size."""

from __future__ import annotations

from typing import Any, cast

import torch

from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.training.app_state import KIND, PerRank, flatten
from cloudshift_lab.training.inventory import unwrap
from cloudshift_lab.training.restore import (
    Differences,
    RestoreReport,
    Wanted,
    read_into,
    read_new,
)
from cloudshift_lab.training.sharding import is_sharded
from cloudshift_lab.training.tree import push_tensors, tensor_name, tensor_names


def put_back(
    checkpoint: Checkpoint, app_state: dict[str, Any], *, rank: int, strict: bool
) -> RestoreReport:
    """Give a stored state back to the objects of ``app_state``.

    Objects get it through ``load_state_dict``; tensors are filled in place; anything else is
    replaced in ``app_state``. Sharded tensors read what this rank holds.

    Raises:
        UsageError: What is stored does not fit, and ``strict``; nothing was changed.
        Corrupt: Stored bytes differ from their hash, or this is another kind of step.
    """
    loading = _Loading(checkpoint, app_state, rank)
    report = loading.compare()
    if strict:
        report.check()
    loading.load(rank)
    return report


class _Loading:
    """What is to be read for which object."""

    def __init__(self, checkpoint: Checkpoint, app_state: dict[str, Any], rank: int) -> None:
        self._checkpoint = checkpoint
        self._app_state = app_state
        here = flatten(app_state, rank)
        self._built = {**here.trees, **here.own_trees}
        self._places = {**here.tensors, **here.own}
        self._stored = _stored_trees(checkpoint, rank)
        self._differences = Differences()
        self._wanted: list[Wanted] = []
        self._new: list[str] = []
        self._filled_by: dict[str, str] = {}

    def compare(self) -> RestoreReport:
        """Find a place for every stored tensor, and what does not fit."""
        self._differences.compare(self._stored, self._built)
        for key in self._keys():
            self._compare_part(key)
        num_tensors = len(self._wanted) + len(self._new)
        return self._differences.report(self._checkpoint.step, num_tensors, "exact")

    def load(self, rank: int) -> None:
        """Read everything with one plan, then let the objects have it."""
        read_into(self._checkpoint, self._wanted, rank=rank)
        tensors = {wanted.name: wanted.target for wanted in self._wanted}
        tensors |= read_new(self._checkpoint, [n for n in self._new if n not in tensors])
        for key in self._keys():
            self._load_part(key, tensors)

    def _keys(self) -> list[str]:
        return [key for key in self._built if key in self._stored]

    def _compare_part(self, key: str) -> None:
        tree, part = self._stored[key], self._app_state[key]
        targets = _targets(tree, self._built[key])
        if isinstance(part, torch.nn.Module):
            self._differences.compare(_entries(key, tree), _entries(key, self._built[key]))
        stored = set(self._checkpoint.names())
        for name in dict.fromkeys(tensor_names(tree)):
            if name not in stored:
                raise Corrupt(f"step {self._checkpoint.step} lacks '{name}'; use another step")
            built = targets.get(name, "")
            first = self._filled_by.setdefault(built, name) if built in self._places else name
            if first != name:
                apart = f"{name} (saved apart from {first}, built as one tensor with it)"
                self._differences.mismatched.append(apart)
                continue
            target = self._places.get(built)
            if target is None:
                target = _beside_its_parameter(part, name, self._checkpoint)
            if target is None:
                self._new.append(name)
            elif self._differences.is_alike(name, self._checkpoint.spec(name), target):
                self._wanted.append(Wanted(name, target))

    def _load_part(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        tree, part = self._stored[key], self._app_state[key]
        if isinstance(part, torch.nn.Module) and isinstance(tree, dict):
            mine = {n: v for n, v in tree.items() if tensors.keys() >= set(tensor_names(v))}
            value = cast(dict[str, Any], push_tensors(mine, tensors))
            unwrap(part).load_state_dict(value, strict=False)
        elif tensors.keys() >= set(tensor_names(tree)):
            _load(self._app_state, key, push_tensors(tree, tensors))


def _entries(key: str, tree: object) -> list[str]:
    return [f"{key}/{name}" for name in tree] if isinstance(tree, dict) else []


def _beside_its_parameter(part: Any, name: str, checkpoint: Checkpoint) -> torch.Tensor | None:
    """A place for an optimizer's tensor that it has not made yet, sharded as its parameter is."""
    *_, kind, number, _key = ("", "", *name.split("/"))
    if not isinstance(part, torch.optim.Optimizer) or kind != "state" or not number.isdigit():
        return None
    params = [param for group in part.param_groups for param in group["params"]]
    param = params[int(number)] if int(number) < len(params) else None
    spec = checkpoint.spec(name)
    if param is None or not is_sharded(param) or tuple(param.shape) != spec.global_shape:
        return None
    return torch.zeros_like(param, dtype=getattr(torch, spec.dtype), requires_grad=False)


def _load(app_state: dict[str, Any], key: str, value: Any) -> None:
    part = app_state[key]
    target = part.value if isinstance(part, PerRank) else part
    if hasattr(target, "load_state_dict"):
        target.load_state_dict(value)
    elif isinstance(part, PerRank):
        app_state[key] = PerRank(value)
    else:
        app_state[key] = value


def _stored_trees(checkpoint: Checkpoint, rank: int) -> dict[str, object]:
    """The common trees, and those of this rank where the saving job had such a rank."""
    trees = dict(_leaves(checkpoint, min(checkpoint.ranks))["trees"])
    return trees | (_leaves(checkpoint, rank)["own"] if rank in checkpoint.ranks else {})


def _leaves(checkpoint: Checkpoint, rank: int) -> dict[str, dict[str, object]]:
    leaves = checkpoint.leaves(rank)
    found: Any = leaves.get(KIND) if isinstance(leaves, dict) else None
    parts = [found.get(name) for name in ("trees", "own")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise Corrupt(
            f"step {checkpoint.step} was not saved by a CheckpointManager; read it with "
            "CasStorageReader or cloudshift_lab.checkpoint"
        )
    return cast(dict[str, dict[str, object]], found)


def _targets(stored: object, built: object) -> dict[str, str]:
    """For each stored tensor the name of the built one at the same place."""
    name, ours = tensor_name(stored), tensor_name(built)
    if name is not None:
        return {} if ours is None else {name: ours}
    found: dict[str, str] = {}
    if isinstance(stored, dict) and isinstance(built, dict):
        for key in stored.keys() & built.keys():
            found |= _targets(stored[key], built[key])
    elif isinstance(stored, list | tuple) and isinstance(built, list | tuple):
        for one, other in zip(stored, built, strict=False):
            found |= _targets(one, other)
    return found
