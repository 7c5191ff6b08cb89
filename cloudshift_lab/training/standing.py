"""Models and optimizers of a state, found once: later saves only see that nothing has changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.training.copying import addresses_of
from cloudshift_lab.training.inventory import Watch, unwrap
from cloudshift_lab.training.sharding import is_sharded, local_of
from cloudshift_lab.training.tree import pull_tensors, tensor_name, tensor_tag

Address = tuple[int, int]
Look = tuple[Address, torch.dtype, torch.Size, tuple[int, ...]]


class Located:
    """Tensors, and where this rank's memory of each lies."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        found = list(tensors)
        self._sharded = [(t, local_of(t)) for t in found if is_sharded(t)]
        self._locals = [local_of(t) for t in found]
        self._addresses = addresses_of(self._locals)

    def holds(self) -> bool:
        """Whether each still lies where it lay."""
        return (
            all(local_of(tensor) is local for tensor, local in self._sharded)
            and addresses_of(self._locals) == self._addresses
        )


class Standing:
    """Parts whose ``state_dict`` gives the same tensors under the same names at every save.

    Training changes what is in the tensors, seldom which tensors there are. So their names, and
    the JSON that says them, are made once; ``holds`` compares nothing but identities and addresses.

    Args:
        parts: Models and optimizers that ``stands`` accepts, by name.
    """

    def __init__(self, parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> None:
        self._watch = Watch()
        self._groups: dict[str, tuple[torch.optim.Optimizer, list[list[int]]]] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.first: dict[Look, str] = {}
        trees = {key: self._pulled(key, part) for key, part in parts.items()}
        self._located = Located(self.tensors.values())
        tie(self.tensors, trees, self.first)
        self.encoded = {key: msgspec.Raw(encode_leaves(tree, key)) for key, tree in trees.items()}

    def holds(self) -> bool:
        """Whether the parts have the same tensors as before, each where it lay."""
        return self._watch.holds() and self._located.holds()

    def groups(self, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
        """The optimizers' parameter groups as they are now; their tensors go into ``tensors``."""
        found: dict[str, object] = {}
        for key, (optimizer, numbers) in self._groups.items():
            now = [
                {**{k: v for k, v in group.items() if k != "params"}, "params": params}
                for group, params in zip(optimizer.param_groups, numbers, strict=True)
            ]
            found[key] = pull_tensors(now, f"{key}/param_groups", tensors)
        return found

    def _pulled(self, key: str, part: nn.Module | torch.optim.Optimizer) -> object:
        if isinstance(part, torch.optim.Optimizer):
            watch_optimizer(part, self._watch)
            state = part.state_dict()
            self._groups[key] = part, [group["params"] for group in state["param_groups"]]
            return pull_tensors(state["state"], f"{key}/state", self.tensors)
        module = unwrap(part)
        _watch_module(module, self._watch)
        return pull_tensors(module.state_dict(keep_vars=True), key, self.tensors)


class Steady:
    """Where the tensors lie that only the optimizers' steps change."""

    def __init__(self, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
        self._optimizers = optimizers
        self._look()

    def addresses(self) -> frozenset[Address]:
        """As they lie now; the same object as long as nothing has changed."""
        if not (self._watch.holds() and self._located.holds()):
            self._look()
        return self._addresses

    def _look(self) -> None:
        self._watch = Watch()
        tensors: list[torch.Tensor] = []
        for optimizer in self._optimizers:
            watch_optimizer(optimizer, self._watch)
            tensors += [p for group in optimizer.param_groups for p in group["params"]]
            values = [v for state in optimizer.state.values() for v in state.values()]
            tensors += [value for value in values if isinstance(value, torch.Tensor)]
        self._located = Located(tensors)
        self._addresses = frozenset(map(address, tensors))


def stands(part: Any) -> bool:
    """Whether a part is of a kind whose state only its tensors and groups make up."""
    if isinstance(part, torch.optim.Optimizer):
        return _is_plain_optimizer(part)
    return isinstance(part, nn.Module) and all(map(_is_plain, unwrap(part).modules()))


def _is_plain(module: nn.Module) -> bool:
    kind = type(module)
    return (
        kind.state_dict is nn.Module.state_dict
        and kind._save_to_state_dict is nn.Module._save_to_state_dict
        and kind.get_extra_state is nn.Module.get_extra_state
        and not {"state_dict", "_save_to_state_dict", "get_extra_state"} & vars(module).keys()
        and not module._state_dict_hooks
        and not module._state_dict_pre_hooks
    )


def _is_plain_optimizer(optimizer: torch.optim.Optimizer) -> bool:
    return (
        type(optimizer).state_dict is torch.optim.Optimizer.state_dict
        and "state_dict" not in vars(optimizer)
        and not optimizer._optimizer_state_dict_pre_hooks
        and not optimizer._optimizer_state_dict_post_hooks
        and all(
            isinstance(state, dict) and all(map(_is_constant, state.values()))
            for state in optimizer.state.values()
        )
    )


def _is_constant(value: object) -> bool:
    """A tensor, or what cannot change without being another object."""
    return value is None or isinstance(value, torch.Tensor | bool)


def _watch_module(root: nn.Module, watch: Watch) -> None:
    for module in root.modules():
        for places in (module._parameters, module._buffers, module._modules):
            watch.expect(places, places.items())
        watch.expect_size(module._non_persistent_buffers_set)
        watch.expect_size(module._state_dict_hooks)
        watch.expect_size(module._state_dict_pre_hooks)


def watch_optimizer(optimizer: torch.optim.Optimizer, watch: Watch) -> None:
    """Notice when other parameters or states than now are there."""
    own = vars(optimizer)
    watch.expect(own, [(key, own[key]) for key in ("state", "param_groups")])
    watch.expect_size(optimizer._optimizer_state_dict_pre_hooks)
    watch.expect_size(optimizer._optimizer_state_dict_post_hooks)
    watch.expect(optimizer.state, optimizer.state.items())
    for state in optimizer.state.values():
        watch.expect(state, state.items())
    watch.expect_size(optimizer.param_groups)
    for group in optimizer.param_groups:
        watch.expect(group, [("params", group["params"])])
        watch.expect_size(group["params"])


def address(tensor: torch.Tensor) -> Address:
    """Where this rank's memory of a tensor lies; equal for two names of one tensor."""
    local = local_of(tensor)
    return (local.data_ptr(), local.nbytes)


def tie(
    tensors: dict[str, torch.Tensor], trees: dict[str, Any], first: dict[Look, str],
    known: Mapping[Look, str] | None = None,
) -> None:  # fmt: skip
    """Keep a tensor under the first of its names, and let the others point at it.

    Args:
        tensors: By name; further names are taken out.
        trees: Where they are referred to.
        first: Filled: the first name of each.
        known: First names that count before these.
    """
    alias: dict[str, str] = {}
    for name, tensor in list(tensors.items()):
        if tensor.numel() == 0:
            continue
        look = (address(tensor), tensor.dtype, tensor.shape, tensor.stride())
        before = None if known is None else known.get(look)
        if before is None:
            before = first.setdefault(look, name)
        if before != name:
            alias[name] = before
            del tensors[name]
    if alias:
        trees.update({key: _renamed(tree, alias) for key, tree in trees.items()})


def _renamed(tree: object, alias: Mapping[str, str]) -> object:
    name = tensor_name(tree)
    if name is not None:
        return tensor_tag(alias.get(name, name))
    if isinstance(tree, dict):
        return {key: _renamed(item, alias) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_renamed(item, alias) for item in tree]
    return tuple(_renamed(item, alias) for item in tree) if isinstance(tree, tuple) else tree
