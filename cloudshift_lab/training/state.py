"""What a training state consists of: gathering it for a capture, putting it back on restore."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import nn

from cloudshift_lab.checkpoint.reader import BoxRequest, Checkpoint
from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.training.tree import dtype_name, pull_tensors, push_tensors, to_torch

Leaves = dict[str, Any]


class Stateful(Protocol):
    """A scheduler, sampler, scaler or anything else that keeps state between steps."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass
class Gathered:
    """A state by reference, nothing copied yet.

    ``replicated`` is equal on all ranks and shared out between them; ``rank0`` are buffers, which
    only agree after rank 0 has broadcast its own; ``own`` belongs to this rank alone.
    """

    replicated: dict[str, torch.Tensor] = field(default_factory=dict)
    rank0: dict[str, torch.Tensor] = field(default_factory=dict)
    own: dict[str, torch.Tensor] = field(default_factory=dict)
    leaves: Leaves = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        everything = (*self.replicated.values(), *self.rank0.values(), *self.own.values())
        return sum(tensor.nbytes for tensor in everything)


class TrainingState:
    """The model, the optimizer and the extras of one rank, by name.

    Args:
        model: May be wrapped in DistributedDataParallel or compiled; the names are the inner ones.
        optimizer: Over parameters of the model (others are named by their place).
        extra: Further objects with ``state_dict`` and ``load_state_dict``.
        rank: Of this process.
        world_size: Ranks of the job.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Stateful],
        *,
        rank: int,
        world_size: int,
    ) -> None:
        self._model = unwrap(model)
        self._optimizer = optimizer
        self._extra = dict(extra)
        self._rank = rank
        self._world_size = world_size
        self._names = {id(p): name for name, p in self._model.named_parameters()}

    def gather(self, step: int) -> Gathered:
        """References to the whole state after ``step``.

        Raises:
            UsageError: Two different things have the same name.
        """
        found = Gathered()
        found.leaves = {
            "step": step,
            "world_size": self._world_size,
            "model": self._gather_model(found),
            "optimizer": self._gather_optimizer(found),
            "extra": pull_tensors(
                {name: part.state_dict() for name, part in self._extra.items()},
                f"extra/{self._rank}",
                found.own,
            ),
            "rng": self._gather_rng(found),
        }
        return found

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put a committed state back, in place, so that what refers to the tensors stays valid.

        Raises:
            UsageError: The script builds another model or optimizer than the one that was saved.
            Corrupt, NotFound: As the checkpoint's reader reported.
        """
        same_world = checkpoint.world_size == self._world_size
        is_known = same_world and self._rank in checkpoint.ranks
        leaves = _leaves_of(checkpoint, self._rank if is_known else min(checkpoint.ranks))
        wanted = ["model/", "optimizer/", f"extra/{leaves['rank']}/"]
        if is_known:
            wanted += [f"rng/{self._rank}/"]
        names = [n for n in checkpoint.names() if f"{n}/".startswith(tuple(wanted))]
        tensors = _read(checkpoint, names)
        self._restore_model(leaves["model"], tensors)
        self._restore_optimizer(leaves["optimizer"], tensors)
        saved = cast(dict[str, Any], push_tensors(leaves["extra"], tensors))
        _expect_same("extra", saved, self._extra)
        for name, part in self._extra.items():
            part.load_state_dict(saved[name])
        if is_known:
            _restore_rng(leaves["rng"], tensors, f"rng/{self._rank}")

    # -- model ------------------------------------------------------------------------------------

    def _gather_model(self, found: Gathered) -> Leaves:
        buffers = {name for name, _ in self._model.named_buffers()}
        seen: dict[tuple[object, ...], str] = {}
        aliases: dict[str, str] = {}
        others: Leaves = {}
        for name, value in self._model.state_dict().items():
            if not isinstance(value, torch.Tensor):
                others[name] = pull_tensors(value, f"model/{name}", found.rank0)
            elif (first := seen.setdefault(_identity(value), name)) != name:
                aliases[name] = first
            else:
                (found.rank0 if name in buffers else found.replicated)[f"model/{name}"] = value
        return {"aliases": aliases, "others": others}

    def _restore_model(self, leaves: Leaves, tensors: Mapping[str, torch.Tensor]) -> None:
        target = self._model.state_dict()
        aliases: dict[str, str] = leaves["aliases"]
        others: Leaves = leaves["others"]
        saved = {n.removeprefix("model/") for n in tensors if n.startswith("model/")}
        _expect_same("model", {*saved, *aliases} | set(others), target)
        for name, value in target.items():
            if name not in others:
                source = tensors[f"model/{aliases.get(name, name)}"]
                _expect_like(f"model/{name}", source, value)
                with torch.no_grad():
                    value.copy_(source)
        if others:
            pushed = {name: push_tensors(value, tensors) for name, value in others.items()}
            self._model.load_state_dict(pushed, strict=False)

    # -- optimizer --------------------------------------------------------------------------------

    def _gather_optimizer(self, found: Gathered) -> Leaves:
        state = {
            name: pull_tensors(self._optimizer.state[p], f"optimizer/{name}", found.replicated)
            for name, p in self._named_params()
            if p in self._optimizer.state
        }
        groups = [
            {
                "names": [self._name(g, i, p) for i, p in enumerate(group["params"])],
                "values": pull_tensors(
                    {key: value for key, value in group.items() if key != "params"},
                    f"optimizer/group-{g}",
                    found.replicated,
                ),
            }
            for g, group in enumerate(self._optimizer.param_groups)
        ]
        return {"state": state, "groups": groups}

    def _restore_optimizer(self, leaves: Leaves, tensors: Mapping[str, torch.Tensor]) -> None:
        params = dict(self._named_params())
        saved_names = [name for group in leaves["groups"] for name in group["names"]]
        _expect_same("optimizer", saved_names, params)
        first = 0
        groups = []
        for group in leaves["groups"]:
            values = cast(dict[str, Any], push_tensors(group["values"], tensors))
            last = first + len(group["names"])
            groups.append({**values, "params": list(range(first, last))})
            first = last
        self._optimizer.load_state_dict({"state": {}, "param_groups": groups})
        for name, state in leaves["state"].items():
            pushed = cast(dict[str, Any], push_tensors(state, tensors))
            param = params[name]
            self._optimizer.state[param] = {k: _place(k, v, param) for k, v in pushed.items()}

    def _named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        for g, group in enumerate(self._optimizer.param_groups):
            for i, param in enumerate(group["params"]):
                yield self._name(g, i, param), param

    def _name(self, group: int, index: int, param: torch.Tensor) -> str:
        return self._names.get(id(param), f"param-{group}-{index}")

    # -- randomness -------------------------------------------------------------------------------

    def _gather_rng(self, found: Gathered) -> Leaves:
        place = f"rng/{self._rank}"
        found.own[place] = torch.get_rng_state()
        if torch.cuda.is_available():
            found.own[f"{place}/cuda"] = torch.cuda.get_rng_state()
        numpy = sys.modules.get("numpy")
        state = None if numpy is None else numpy.random.get_state(legacy=False)
        return {"python": random.getstate(), "numpy": pull_tensors(state, place, {})}


def unwrap(model: nn.Module) -> nn.Module:
    """The module that the researcher wrote, without DistributedDataParallel and ``compile``."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor; an empty tensor has no memory to share."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _place(key: str, value: object, param: torch.Tensor) -> object:
    """Bring an optimizer's tensor to its parameter's device; step counters stay on the host."""
    if not isinstance(value, torch.Tensor) or (key == "step" and value.dim() == 0):
        return value
    return value.to(param.device)


def _leaves_of(checkpoint: Checkpoint, rank: int) -> Leaves:
    leaves = checkpoint.leaves(rank)
    expected = {"step", "world_size", "model", "optimizer", "extra", "rng"}
    if not isinstance(leaves, dict) or not expected <= set(leaves):
        raise Corrupt(
            f"step {checkpoint.step} was not written by a training session; "
            "open it with cloudshift_lab.checkpoint.reader instead"
        )
    return {**leaves, "rank": rank}


def _read(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, torch.Tensor]:
    specs = [checkpoint.spec(name) for name in names]
    requests = [
        BoxRequest(s.name, (0,) * len(s.global_shape), tuple(s.global_shape)) for s in specs
    ]
    arrays = checkpoint.read_many(requests)
    return {
        spec.name: to_torch(array, spec.dtype) for spec, array in zip(specs, arrays, strict=True)
    }


def _restore_rng(leaves: Leaves, tensors: Mapping[str, torch.Tensor], place: str) -> None:
    torch.set_rng_state(tensors[place])
    if f"{place}/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{place}/cuda"])
    random.setstate(leaves["python"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and leaves["numpy"] is not None:
        numpy.random.set_state(push_tensors(leaves["numpy"], {}))


def _expect_same(part: str, saved: Iterable[str], built: Iterable[str]) -> None:
    odd = sorted(set(saved) ^ set(built))
    if odd:
        raise UsageError(
            f"the script's {part} and the saved one differ in '{odd[0]}' ({len(odd)} names); "
            "run the script that wrote this checkpoint"
        )


def _expect_like(name: str, saved: torch.Tensor, built: torch.Tensor) -> None:
    if (saved.shape, saved.dtype) != (built.shape, built.dtype):
        raise UsageError(
            f"'{name}' was saved as {dtype_name(saved)}{tuple(saved.shape)}, the script builds "
            f"{dtype_name(built)}{tuple(built.shape)}; run the script that wrote this checkpoint"
        )
