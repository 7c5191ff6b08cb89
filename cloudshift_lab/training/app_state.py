"""What a researcher gives to save: objects with state, dictionaries, tensors, numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.inventory import unwrap
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.plan import SharePlan, whole_part
from cloudshift_lab.training.sharding import local_of
from cloudshift_lab.training.tree import tensor_name, tensor_tag
from cloudshift_lab.training.values import to_plain

KIND = "app_state"
Address = tuple[int, int]


@dataclass(frozen=True)
class PerRank:
    """A value that each rank has its own of: a sampler's state, a generator's.

    Everything else in a state counts as equal on all ranks, or as sharded by its DTensors. A rank
    that the saving job did not have finds none: restore with ``strict=False`` there.
    """

    value: Any


@dataclass
class Flattened:
    """A state by reference: trees with tags in the place of tensors, and the tensors by name.

    A tensor that has two names in the state is here once. ``own`` is this rank's alone.
    ``addresses``: where the memory of each of ``tensors`` lies.
    """

    trees: dict[str, object] = field(default_factory=dict)
    own_trees: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    own: dict[str, torch.Tensor] = field(default_factory=dict)
    addresses: dict[str, Address] = field(default_factory=dict)


def flatten(
    app_state: Mapping[str, Any], rank: int, pull: Callable[..., object] = to_plain
) -> Flattened:
    """References to everything in a state.

    Args:
        app_state: What was given, by name.
        rank: Of this process.
        pull: Takes the tensors out of a value; ``pull_tensors`` leaves it to a later encoding to
            find values that a checkpoint cannot hold.

    Raises:
        UsageError: A key with a slash, or a value that a checkpoint cannot hold, by its key path.
    """
    found = Flattened()
    for key, part in app_state.items():
        if not isinstance(key, str) or "/" in key or not key:
            raise UsageError(f"{key!r} cannot name a part of the state; use words without '/'")
        if isinstance(part, PerRank):
            name = f"{key}/rank-{rank}"
            found.own_trees[key] = pull(state_of(part.value), name, found.own)
        else:
            found.trees[key] = pull(state_of(part), key, found.tensors)
    _tie(found)
    return found


def state_of(part: Any) -> Any:
    """The state of a part, by reference; of a wrapped module that of the inner one."""
    if isinstance(part, torch.nn.Module):
        return unwrap(part).state_dict()
    return part.state_dict() if hasattr(part, "state_dict") else part


class ShareMaker:
    """Makes this rank's share of a state, from a plan that lasts as long as the tensors do.

    Args:
        rank: Of this process.
        world_size: Ranks of the job.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._plan: tuple[object, SharePlan] | None = None

    def share(self, flat: Flattened, step: int, steady: set[Address] | None) -> Share:
        """The share after a step.

        Args:
            flat: The state.
            step: Its number.
            steady: Where the tensors lie that only an optimizer changes; None: nothing overlaps.
        """
        where = flat.addresses
        calm = {n: t for n, t in flat.tensors.items() if steady is None or where[n] in steady}
        restless = {name: t for name, t in flat.tensors.items() if name not in calm}
        looks = [(n, where[n], t.dtype, t.shape) for n, t in calm.items()]
        if self._plan is None or self._plan[0] != looks or not self._plan[1].fits(restless):
            plan = SharePlan(calm, restless, rank=self._rank, world_size=self._world_size)
            self._plan = looks, plan
        plan = self._plan[1]
        own = tuple(whole_part(name, tensor) for name, tensor in flat.own.items())
        leaves = {
            KIND: {"step": step, "world_size": self._world_size, "trees": flat.trees,
                   "own": flat.own_trees},
        }  # fmt: skip
        return Share(plan.steady, (*plan.volatile(restless), *own), leaves, plan.catalog)


def address(tensor: torch.Tensor) -> Address:
    """Where this rank's memory of a tensor lies; equal for two names of one tensor."""
    local = local_of(tensor)
    return (local.data_ptr(), local.nbytes)


def _tie(found: Flattened) -> None:
    """Keep a tensor under the first of its names, and let the others point at it."""
    first: dict[object, str] = {}
    alias: dict[str, str] = {}
    for name, tensor in list(found.tensors.items()):
        found.addresses[name] = address(tensor)
        if tensor.numel() == 0:
            continue
        same = (found.addresses[name], tensor.dtype, tensor.shape, tensor.stride())
        if (known := first.setdefault(same, name)) != name:
            alias[name] = known
            del found.tensors[name]
    if alias:
        found.trees = {key: _renamed(tree, alias) for key, tree in found.trees.items()}


def _renamed(tree: object, alias: Mapping[str, str]) -> object:
    name = tensor_name(tree)
    if name is not None:
        return tensor_tag(alias.get(name, name))
    if isinstance(tree, dict):
        return {key: _renamed(item, alias) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_renamed(item, alias) for item in tree]
    return tuple(_renamed(item, alias) for item in tree) if isinstance(tree, tuple) else tree
