"""A stored step as the nested state dictionary that PyTorch knows, its tensors still stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.training.app_state import KIND as APP_STATE
from cloudshift_lab.training.flat import read_flat
from cloudshift_lab.training.planners import put_at
from cloudshift_lab.training.tree import push_tensors, tensor_name, tensor_names

_MODEL = "model/"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the store, by its name there."""

    name: str


def nested_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Dictionaries and lists as they were saved, with ``StoredTensor`` in the place of tensors.

    Of a ``CheckpointManager`` the parts that it was given, without those of single ranks. A
    training session's step becomes ``model`` (as ``load_state_dict`` takes it, tied names
    included), ``optimizer`` (with the names of the parameters) and ``step``. Its extras and its
    random generators belong to single ranks and are left out.

    Raises:
        Corrupt: The records are malformed.
    """
    flat = read_flat(checkpoint)
    if flat is not None:
        root: dict[str, Any] = {}
        for name in checkpoint.names():
            if name not in flat.nested:
                put_at(root, flat.paths.get(name, (name,)), StoredTensor(name))
        for name, value in flat.values.items():
            put_at(root, flat.paths.get(name, (name,)), _pushed(value))
        return root
    leaves = _first_leaves(checkpoint)
    if isinstance(app := leaves.get(APP_STATE), dict) and isinstance(app.get("trees"), dict):
        return cast(dict[str, Any], _pushed(app["trees"]))
    if is_session(checkpoint):
        return _session(checkpoint, leaves)
    return {name: StoredTensor(name) for name in checkpoint.names()}


def is_session(checkpoint: Checkpoint) -> bool:
    """Whether a training session saved the step."""
    return {"model", "optimizer"} <= set(_first_leaves(checkpoint))


def model_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """The model's tensors: the name for a file, to the name in the store.

    Of a training session, and of anything with a part called ``model``, that part with all its
    names; of anything else every tensor.
    """
    state = nested_state(checkpoint)
    model = state.get("model")
    if not isinstance(model, dict) or not any(stored_tensors(model)):
        return {name: name for name in checkpoint.names()}
    return {name: tensor.name for name, tensor in _flat(model)}


def _flat(tree: object, path: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Every stored tensor of a tree with its keys, joined by dots."""
    if isinstance(tree, StoredTensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for i, item in enumerate(tree):
            yield from _flat(item, f"{path}.{i}" if path else str(i))


def _first_leaves(checkpoint: Checkpoint) -> dict[str, Any]:
    leaves = checkpoint.leaves(min(checkpoint.ranks)) if checkpoint.ranks else None
    return leaves if isinstance(leaves, dict) else {}


def positional(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with numbers for names, as ``Optimizer.load_state_dict`` takes it."""
    number: dict[str, int] = {}
    groups = []
    for group in optimizer["param_groups"]:
        for name in group["params"]:
            number[name] = len(number)
        groups.append({**group, "params": [number[name] for name in group["params"]]})
    state = {number[name]: value for name, value in optimizer["state"].items() if name in number}
    return {"state": state, "param_groups": groups}


def stored_tensors(value: object) -> Iterator[StoredTensor]:
    """Every stored tensor of a tree."""
    if isinstance(value, StoredTensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from stored_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from stored_tensors(item)


def _session(checkpoint: Checkpoint, leaves: dict[str, Any]) -> dict[str, Any]:
    try:
        aliases: dict[str, str] = leaves["model"]["aliases"]
        model: dict[str, Any] = {
            name.removeprefix(_MODEL): StoredTensor(name)
            for name in checkpoint.names()
            if name.startswith(_MODEL)
        }
        model |= {name: StoredTensor(f"{_MODEL}{first}") for name, first in aliases.items()}
        model |= {name: _pushed(value) for name, value in leaves["model"]["others"].items()}
        saved = leaves["optimizer"]
        groups = [
            {**_pushed(group["values"]), "params": list(group["names"])}
            for group in saved["groups"]
        ]
        state = _optimizer_state(checkpoint, saved)
        step = leaves["step"]
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            f"step {checkpoint.step} has records of an unknown layout ({error}); "
            "update cloudshift-lab, or use another step"
        ) from error
    return {
        "model": model,
        "optimizer": {"state": state, "param_groups": groups},
        "step": step,
    }


def _optimizer_state(checkpoint: Checkpoint, saved: dict[str, Any]) -> dict[str, Any]:
    """Per parameter its state: tensors by their names in the store, and what is no tensor."""
    params = [name for group in saved["groups"] for name in group["names"]]
    state: dict[str, Any] = {name: {} for name in params}
    for name in checkpoint.names():
        param, _, key = name.removeprefix("optimizer/").rpartition("/")
        if name.startswith("optimizer/") and param in state:
            state[param][key] = StoredTensor(name)
    for param, others in saved["state"].items():
        state.setdefault(param, {}).update(_pushed(others))
    return {param: values for param, values in state.items() if values}


def _pushed(tree: Any) -> Any:
    """A tree of plain values with its tensors as stored ones."""
    name = tensor_name(tree)
    if name is not None:
        return StoredTensor(name)
    if isinstance(tree, dict):
        return {key: _pushed(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_pushed(item) for item in tree]
    if isinstance(tree, tuple):
        is_tagged = len(tree) == 4 and isinstance(tree[0], str)
        found = push_tensors(tree, {}) if is_tagged and not any(tensor_names(tree)) else None
        is_array = isinstance(found, np.ndarray)
        return found if is_array else tuple(_pushed(item) for item in tree)
    return tree
