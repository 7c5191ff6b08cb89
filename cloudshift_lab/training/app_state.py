"""What a researcher gives to save: objects with state, dictionaries, tensors, numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import nn

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.inventory import unwrap
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.plan import SharePlan, whole_part
from cloudshift_lab.training.standing import (
    Address,
    Standing,
    Steady,
    address,
    stands,
    tie,
)
from cloudshift_lab.training.tree import pull_tensors
from cloudshift_lab.training.values import to_plain

KIND = "app_state"


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
    """

    trees: dict[str, object] = field(default_factory=dict)
    own_trees: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    own: dict[str, torch.Tensor] = field(default_factory=dict)


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
    check_names(app_state)
    found = _pulled(app_state, rank, pull)
    tie(found.tensors, found.trees, {})
    return found


def _pulled(app_state: Mapping[str, Any], rank: int, pull: Callable[..., object]) -> Flattened:
    found = Flattened()
    for key, part in app_state.items():
        if isinstance(part, PerRank):
            found.own_trees[key] = pull(state_of(part.value), own_name(key, rank), found.own)
        else:
            found.trees[key] = pull(state_of(part), key, found.tensors)
    return found


def check_names(app_state: Mapping[str, Any]) -> None:
    """Refuse names that cannot be part of a tensor's name.

    Raises:
        UsageError: There is one.
    """
    for key in app_state:
        if not isinstance(key, str) or "/" in key or not key:
            raise UsageError(f"{key!r} cannot name a part of the state; use words without '/'")


def own_name(key: str, rank: int) -> str:
    """How a rank's own value is called."""
    return f"{key}/rank-{rank}"


def state_of(part: Any) -> Any:
    """The state of a part, by reference; of a wrapped module that of the inner one."""
    if isinstance(part, nn.Module):
        return unwrap(part).state_dict()
    return part.state_dict() if hasattr(part, "state_dict") else part


class ShareMaker:
    """Makes this rank's share of a state; what lasts from save to save is worked out once.

    Args:
        rank: Of this process.
        world_size: Ranks of the job.
        optimizers: Whose parameters and states change in nothing but their steps.
    """

    def __init__(
        self, rank: int, world_size: int, optimizers: tuple[torch.optim.Optimizer, ...] = ()
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._steady = Steady(optimizers) if optimizers else None
        self._where: frozenset[Address] | None = None
        self._seen: dict[str, Any] = {}
        self._standing = Standing({})
        self._calm: dict[str, torch.Tensor] = {}
        self._restless: dict[str, torch.Tensor] = {}
        self._plan: tuple[object, SharePlan] | None = None

    def share(self, app_state: Mapping[str, Any], step: int) -> Share:
        """The share after a step, by reference; nothing in its leaves changes later.

        Raises:
            UsageError: A key with a slash, or a value that a checkpoint cannot hold, by its key
                path.
        """
        check_names(app_state)
        self._look(app_state)
        standing = self._standing
        rest = {key: part for key, part in app_state.items() if key not in standing.encoded}
        moving = _pulled(rest, self._rank, pull_tensors)
        fresh = {**moving.trees, **standing.groups(moving.tensors)}
        tie(moving.tensors, fresh, {}, standing.first)
        trees = {key: self._encoded(key, fresh) for key in app_state if key not in moving.own_trees}
        own_trees = {
            key: msgspec.Raw(encode_leaves(tree, own_name(key, self._rank)))
            for key, tree in moving.own_trees.items()
        }
        leaves = {
            KIND: {"step": step, "world_size": self._world_size, "trees": _named(trees),
                   "own": _named(own_trees)},
        }  # fmt: skip
        plan, restless = self._plan_of(moving.tensors)
        own = tuple(whole_part(name, tensor) for name, tensor in moving.own.items())
        return Share(
            plan.steady, (*plan.volatile(restless), *own),
            msgspec.Raw(msgspec.json.encode(leaves)), plan.catalog,
        )  # fmt: skip

    def _look(self, app_state: Mapping[str, Any]) -> None:
        """See whether the models and optimizers are as they were, and look anew if not."""
        kinds = (nn.Module, torch.optim.Optimizer)
        parts = {key: part for key, part in app_state.items() if isinstance(part, kinds)}
        where = None if self._steady is None else self._steady.addresses()
        is_known = (
            where is self._where
            and parts.keys() == self._seen.keys()
            and all(parts[key] is part for key, part in self._seen.items())
        )
        if is_known and self._standing.holds():
            return
        self._seen, self._where = parts, where
        self._standing = Standing({key: part for key, part in parts.items() if stands(part)})
        self._calm, self._restless = self._split(self._standing.tensors)

    def _split(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Tensors that only an optimizer changes, and the others; without any, none overlap."""
        where = self._where
        calm = {n: t for n, t in tensors.items() if where is None or address(t) in where}
        return calm, {name: tensor for name, tensor in tensors.items() if name not in calm}

    def _plan_of(
        self, moving: Mapping[str, torch.Tensor]
    ) -> tuple[SharePlan, dict[str, torch.Tensor]]:
        calm, restless = self._split(moving)
        restless = {**self._restless, **restless}
        looks = [(name, address(t), t.dtype, t.shape) for name, t in calm.items()]
        key = self._standing, looks
        if self._plan is None or self._plan[0] != key or not self._plan[1].fits(restless):
            plan = SharePlan(
                {**self._calm, **calm}, restless, rank=self._rank, world_size=self._world_size
            )
            self._plan = key, plan
        return self._plan[1], restless

    def _encoded(self, key: str, fresh: Mapping[str, object]) -> object:
        """A part's tree as JSON, of which only what may have changed is made anew."""
        known = self._standing.encoded.get(key)
        if known is None:
            return msgspec.Raw(encode_leaves(fresh[key], key))
        if key not in fresh:
            return known
        groups = msgspec.Raw(encode_leaves(fresh[key], f"{key}.param_groups"))
        return {"state": known, "param_groups": groups}


def _named(trees: Mapping[str, object]) -> object:
    """Encoded values by name, as typed JSON holds them."""
    if any(key.startswith("$") for key in trees):
        return {"$d": [[key, tree] for key, tree in trees.items()]}
    return trees
