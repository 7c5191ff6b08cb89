"""Finds for everything that a script has built what a checkpoint has for it, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch

from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.training.inventory import (
    Leaves,
    ModelTensors,
    OptimizerTensors,
    canonical,
)
from cloudshift_lab.training.restore import (
    Differences,
    Wanted,
    fits,
    lies_elsewhere,
    like_state,
    read_new,
)
from cloudshift_lab.training.tree import push_tensors, tensor_name, tensor_names, tensor_tag

_PARTS = {"step", "world_size", "model", "optimizer", "extra", "rng"}


class SavedState:
    """What a training session saved, as this rank is to see it.

    Args:
        checkpoint: An open step.
        rank: Of this process.
        world_size: Ranks now. At another world size than the saved one, or if this rank's record
            is missing, the leaves are those of the lowest saved rank.

    Raises:
        Corrupt: Not written by a training session.
    """

    def __init__(self, checkpoint: Checkpoint, *, rank: int, world_size: int) -> None:
        self.checkpoint = checkpoint
        self.step = checkpoint.step
        self.names = checkpoint.names()
        self.is_same_world = checkpoint.world_size == world_size and rank in checkpoint.ranks
        leaves = checkpoint.leaves(rank if self.is_same_world else min(checkpoint.ranks))
        if not isinstance(leaves, dict) or not set(leaves) >= _PARTS:
            raise Corrupt(
                f"step {checkpoint.step} was not written by a training session; "
                "open it with cloudshift_lab.checkpoint.reader instead"
            )
        self.leaves: Leaves = leaves
        self.layout = int(leaves.get("layout", 1))

    def model_tensors(self) -> dict[str, str]:
        """Stored tensor of each of the model's names; tied ones lead to the same."""
        leaves: Leaves = self.leaves["model"]
        inside = set(tensor_names(leaves["others"]))
        stored = {
            canonical(name.removeprefix("model/")): name
            for name in self.names
            if name.startswith("model/") and name not in inside
        }
        aliases: dict[str, str] = leaves["aliases"]
        tied = {canonical(a): stored[canonical(b)] for a, b in aliases.items()}
        return {**stored, **tied}

    def groups(self) -> list[Leaves]:
        """Names and values of each of the optimizers' groups."""
        groups: list[Leaves] = self.leaves["optimizer"]["groups"]
        return [{**g, "names": [canonical(name) for name in g["names"]]} for g in groups]

    def optimizer_state(self) -> dict[str, Leaves]:
        """Per parameter its state, with tags in the place of tensors."""
        states: dict[str, Leaves] = self.leaves["optimizer"]["state"]
        found = {canonical(name): dict(state) for name, state in states.items()}
        if self.layout > 1:
            params = {name for group in self.groups() for name in group["names"]}
            for name in self.names:
                kind, _, rest = name.partition("/")
                param, _, key = rest.rpartition("/")
                if kind == "optimizer" and param in params:
                    found.setdefault(param, {})[key] = tensor_tag(name)
        return found

    def whole(self, tree: object) -> object:
        """A tree of leaves with its tensors read and put back into it."""
        return push_tensors(tree, read_new(self.checkpoint, tensor_names(tree)))


class ModelRestore:
    """A model's tensors and what they are to hold.

    ``wanted`` is to be read, then ``finish`` called; ``odd`` are names whose tensors do not fit.
    """

    def __init__(self, model: ModelTensors, saved: SavedState, differences: Differences) -> None:
        self._model = model
        self._saved = saved
        self._made: dict[str, torch.Tensor] = {}
        self.wanted: list[Wanted] = []
        self.odd: set[str] = set()
        stored = saved.model_tensors()
        self._others: Leaves = saved.leaves["model"]["others"]
        built = {n.removeprefix("model/"): t for n, t in {**model.steady, **model.volatile}.items()}
        inside = set(tensor_names(model.leaves["others"]))
        built = {name: t for name, t in built.items() if f"model/{name}" not in inside}
        others = set(model.leaves["others"])
        differences.compare(
            [f"model/{name}" for name in {*stored, *map(canonical, self._others)}],
            [f"model/{name}" for name in {*built, *others, *model.leaves["aliases"]}],
        )
        for name in [name for name in built if name in stored]:
            spec = saved.checkpoint.spec(stored[name])
            if differences.is_alike(f"model/{name}", spec, built[name]):
                self.wanted.append(Wanted(stored[name], self._target(name, built[name])))
            else:
                self.odd.add(name)

    def _target(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in self._model.computed:
            return tensor
        self._made[name] = torch.empty_like(tensor)
        return self._made[name]

    def finish(self) -> None:
        """Hand the model what only its own ``load_state_dict`` can take."""
        real_names = self._model.real_names
        others = {
            name: self._others[name] for name in self._others if canonical(name) in real_names
        }
        pushed = cast(Leaves, self._saved.whole(others)) if others else {}
        state = {real_names[canonical(name)]: v for name, v in {**pushed, **self._made}.items()}
        if state:
            self._model.module.load_state_dict(state, strict=False)


class OptimizerRestore:
    """The optimizers' states and groups and what they are to hold.

    Nothing is changed before ``prepare``; what that returns is to be read, then ``finish`` called.

    Args:
        optimizer: As built; states may exist already or not yet.
        saved: What was saved.
        differences: Filled.
        odd: Parameters that keep the values built, whose saved states are of no use.
    """

    def __init__(
        self, optimizer: OptimizerTensors, saved: SavedState, differences: Differences,
        odd: set[str],
    ) -> None:  # fmt: skip
        self._optimizer = optimizer
        self._saved = saved
        self._groups: list[tuple[dict[str, Any], Leaves]] = []
        self._states: dict[str, Leaves] = {}
        self._wanted: list[Wanted] = []
        kinds = saved.leaves["optimizer"].get("kinds")
        if kinds is not None and kinds != optimizer.leaves["kinds"]:
            differences.mismatched.append(
                f"optimizer (saved {_kinds(kinds)}, built {_kinds(optimizer.leaves['kinds'])})"
            )
            return
        self._match_params(differences, odd)
        self._match_groups(differences)

    def _match_params(self, differences: Differences, odd: set[str]) -> None:
        params = self._optimizer.params()
        saved_names = {name for group in self._saved.groups() for name in group["names"]}
        differences.compare(
            [f"optimizer/{name}" for name in saved_names], [f"optimizer/{name}" for name in params]
        )
        for name, param in self._optimizer.loose().items():
            if name in self._saved.names:
                if differences.is_alike(name, self._saved.checkpoint.spec(name), param):
                    self._wanted.append(Wanted(name, param))
                else:
                    odd = odd | {name.removeprefix("loose/")}
        states = self._saved.optimizer_state()
        for name in [name for name in params if name in saved_names - odd]:
            self._states[name] = states.get(name, {})

    def _match_groups(self, differences: Differences) -> None:
        theirs = self._saved.groups()
        ours = self._optimizer.leaves["groups"]
        if len(theirs) != len(ours):
            differences.mismatched.append(
                f"optimizer groups (saved {len(theirs)}, built {len(ours)})"
            )
            return
        for g, group in self._optimizer.groups():
            odd = set(theirs[g]["names"]) ^ set(ours[g]["names"])
            _note_moved(differences, g, odd)
            self._groups.append((group, theirs[g]["values"]))

    def prepare(self) -> list[Wanted]:
        """Make the state that the optimizers do not have yet; what is to be read."""
        params = self._optimizer.params()
        groups = {id(p): group for _, group in self._optimizer.groups() for p in group["params"]}
        for group, theirs in self._groups:  # what ``finish`` makes of them
            groups |= {id(p): {**group, **theirs} for p in group["params"]}
        for name, saved in self._states.items():
            optimizer, param = params[name]
            state = optimizer.state[param]
            for key in state.keys() - saved.keys():
                del state[key]
            for key, value in saved.items():
                stored = tensor_name(value)
                if stored is None:
                    state[key] = _on_device(self._saved.whole(value), param)
                    continue
                spec = self._saved.checkpoint.spec(stored)
                group = groups[id(param)]
                if not fits(spec, state.get(key)) or lies_elsewhere(key, state[key], param, group):
                    state[key] = like_state(key, spec, param, group)
                self._wanted.append(Wanted(stored, state[key]))
            if not state:
                del optimizer.state[param]
        return self._wanted

    def finish(self) -> None:
        """Give the groups their saved hyperparameters; a tensor among them stays the same one."""
        values = cast(list[Leaves], self._saved.whole([values for _, values in self._groups]))
        for (group, _), saved in zip(self._groups, values, strict=True):
            for key, value in saved.items():
                if isinstance(value, torch.Tensor) and isinstance(group.get(key), torch.Tensor):
                    with torch.no_grad():
                        group[key].copy_(value)
                else:
                    group[key] = value


def _note_moved(differences: Differences, group: int, names: Iterable[str]) -> None:
    known = {*differences.missing, *differences.unexpected}
    moved = sorted(name for name in names if f"optimizer/{name}" not in known)
    if moved:
        differences.mismatched.append(f"optimizer group {group} (has or lacks {moved[0]})")


def _kinds(kinds: list[list[object]]) -> str:
    return "+".join(str(kind) for kind, _ in kinds)


def _on_device(value: object, param: torch.Tensor) -> object:
    """Nested state with its tensors on the parameter's device."""
    if isinstance(value, torch.Tensor):
        return value.to(param.device)
    if isinstance(value, dict):
        return {key: _on_device(item, param) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_device(item, param) for item in value)
    return value
