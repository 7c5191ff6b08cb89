"""The named tensors of a model and of its optimizers, found once and looked at again cheaply."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from operator import call, is_
from typing import Any

import torch
from torch import nn

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.sharding import is_sharded
from cloudshift_lab.training.tree import check_tensor, pull_tensors

Leaves = dict[str, Any]
Optimizers = (
    torch.optim.Optimizer
    | Sequence[torch.optim.Optimizer]
    | Mapping[str, torch.optim.Optimizer]
)  # fmt: skip
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_checkpoint_wrapped_module)\.")


class Watch:
    """Notices that somebody put another object in the place of one that was found there."""

    def __init__(self) -> None:
        self._looks_up: list[Callable[[object], object]] = []
        self._keys: list[object] = []
        self._values: list[object] = []
        self._sized: list[Sized] = []
        self._sizes: list[int] = []

    def expect(self, container: Any, entries: Iterable[tuple[object, object]]) -> None:
        """These keys lead to these very objects, and there are no others."""
        for key, value in entries:
            self._looks_up.append(container.get)
            self._keys.append(key)
            self._values.append(value)
        self.expect_size(container)

    def expect_size(self, container: Sized) -> None:
        """As many as now, whatever they are."""
        self._sized.append(container)
        self._sizes.append(len(container))

    def holds(self) -> bool:
        """Whether everything is as it was found; over a thousand places, so without a loop."""
        return list(map(len, self._sized)) == self._sizes and all(
            map(is_, map(call, self._looks_up, self._keys), self._values)
        )


class ModelTensors:
    """What a model's ``state_dict`` holds, by the names that the researcher gave.

    ``steady`` are parameters, ``volatile`` buffers and whatever a hook computes. A tensor with
    two names is here once; ``leaves`` has the other names and everything that is no tensor.
    ``computed`` are those that are made anew at each call; ``real_names`` undoes ``canonical``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = unwrap(model)
        self._find()

    def refresh(self) -> bool:
        """Look again; whether other steady tensors than before are there."""
        if not self.computed and self._watch.holds():
            return False
        before = self.steady
        self._find()
        return not _same_objects(before, self.steady)

    def _find(self) -> None:
        self.steady: dict[str, torch.Tensor] = {}
        self.volatile: dict[str, torch.Tensor] = {}
        state = self.module.state_dict(keep_vars=True)
        found = {canonical(name): value for name, value in state.items()}
        self.real_names = {canonical(name): name for name in state}
        self.names = {id(p): canonical(n) for n, p in self.module.named_parameters()}
        buffers = {id(b) for b in self.module.buffers()}
        first_names: dict[tuple[object, ...], str] = {}
        aliases: dict[str, str] = {}
        others: Leaves = {}
        self.computed: set[str] = set()
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                check_tensor(value, f"model/{name}")
            if not isinstance(value, torch.Tensor):
                others[name] = pull_tensors(value, f"model/{name}", self.volatile)
                self.computed.add(name)
            elif (first := first_names.setdefault(_identity(value), name)) != name:
                aliases[name] = first
            else:
                kind = self.steady if id(value) in self.names else self.volatile
                kind[f"model/{name}"] = value
                if id(value) not in self.names and id(value) not in buffers:
                    self.computed.add(name)
        self.leaves: Leaves = {"aliases": aliases, "others": others}
        self._watch = Watch()
        for module in self.module.modules():
            for places in (module._parameters, module._buffers, module._modules):
                self._watch.expect(places, places.items())


class OptimizerTensors:
    """What one or several optimizers hold: ``steady`` per parameter, ``volatile`` per group.

    Groups count through all optimizers. State that an optimizer has not made yet is not here.
    """

    def __init__(self, optimizers: Optimizers, model: ModelTensors) -> None:
        self.optimizers = listed(optimizers)
        self._model = model
        self._find()

    def refresh(self, *, is_renamed: bool = False) -> bool:
        """Look again; whether other steady tensors than before are there.

        Args:
            is_renamed: The model's parameters are others than before.
        """
        if is_renamed or self._is_computed or not self._is_as_found():
            before = self.steady
            self._find()
            return not _same_objects(before, self.steady)
        self._find_groups()
        return False

    @property
    def leaves(self) -> Leaves:
        """Hyperparameters, the optimizers' kinds, and what of their states is no tensor."""
        kinds = [[type(o).__name__, len(o.param_groups)] for o in self.optimizers]
        return {"state": self._state, "groups": self._groups, "kinds": kinds}

    def groups(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every parameter group with its number."""
        yield from enumerate(itertools.chain(*(o.param_groups for o in self.optimizers)))

    def params(self) -> dict[str, tuple[torch.optim.Optimizer, torch.Tensor]]:
        """Every parameter by name, with its optimizer.

        Raises:
            UsageError: A parameter belongs to two groups or optimizers.
        """
        owner = {id(group): o for o in self.optimizers for group in o.param_groups}
        found: dict[str, tuple[torch.optim.Optimizer, torch.Tensor]] = {}
        for g, group in self.groups():
            for i, param in enumerate(group["params"]):
                name = self.name(g, i, param)
                if found.setdefault(name, (owner[id(group)], param)) != (owner[id(group)], param):
                    raise UsageError(
                        f"'{name}' belongs to two optimizers, whose states would have one name; "
                        "give each parameter to one optimizer"
                    )
        return found

    def name(self, group: int, index: int, param: torch.Tensor) -> str:
        """The model's name of a parameter; one that is not the model's is named by its place."""
        return self._model.names.get(id(param), f"param-{group}-{index}")

    def loose(self) -> dict[str, torch.Tensor]:
        """Parameters that are not the model's, which nobody else saves."""
        return {
            f"loose/{name}": param
            for name, (_, param) in self._params.items()
            if id(param) not in self._model.names
        }

    def _is_as_found(self) -> bool:
        now = [(o.state, o.param_groups, len(o.param_groups)) for o in self.optimizers]
        same = all(
            state is s and groups is g and count == n
            for (state, groups, count), (s, g, n) in zip(now, self._lists, strict=True)
        )
        return same and self._watch.holds()

    def _find(self) -> None:
        self._is_computed = False
        self._watch = Watch()
        self._lists = [(o.state, o.param_groups, len(o.param_groups)) for o in self.optimizers]
        self._params = self.params()
        self.steady: dict[str, torch.Tensor] = self.loose()
        self._state: Leaves = {}
        for name, (optimizer, param) in self._params.items():
            if (state := optimizer.state.get(param)) is not None:
                self._find_state(name, state)
        for optimizer in self.optimizers:
            self._watch.expect(optimizer.state, optimizer.state.items())
        for _, group in self.groups():
            self._watch.expect_size(group["params"])
        self._group_names = [
            [self.name(g, i, p) for i, p in enumerate(group["params"])]
            for g, group in self.groups()
        ]
        self._find_groups()

    def _find_state(self, name: str, state: dict[str, Any]) -> None:
        """Tensors go under their names; only what is no tensor needs a leaf."""
        others: Leaves = {}
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and "/" not in str(key):
                pull_tensors(value, f"optimizer/{name}/{key}", self.steady)
            else:
                others[key] = pull_tensors(value, f"optimizer/{name}/{key}", self.steady)
                self._is_computed |= not (value is None or isinstance(value, bool))
        if others:
            self._state[name] = others
        self._watch.expect(state, state.items())

    def _find_groups(self) -> None:
        self.volatile: dict[str, torch.Tensor] = {}
        self._groups = [
            {
                "names": self._group_names[g],
                "values": pull_tensors(
                    {key: value for key, value in group.items() if key != "params"},
                    f"optimizer/group-{g}",
                    self.volatile,
                ),
            }
            for g, group in self.groups()
        ]


def listed(optimizers: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """One or several optimizers, in order."""
    if isinstance(optimizers, torch.optim.Optimizer):
        return (optimizers,)
    return tuple(optimizers.values() if isinstance(optimizers, Mapping) else optimizers)


def unwrap(model: nn.Module) -> nn.Module:
    """The module that the researcher wrote, without DistributedDataParallel and ``compile``."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def canonical(name: str) -> str:
    """A parameter's name without what ``compile`` and activation checkpointing put into it."""
    return _WRAPPERS.sub("", name)


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor; an empty tensor has no memory to share."""
    if is_sharded(tensor) or tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _same_objects(ours: Mapping[str, object], theirs: Mapping[str, object]) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
