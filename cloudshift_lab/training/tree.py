"""State dictionaries as flat named tensors plus a tree of everything else, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from cloudshift_lab.core.errors import UsageError

_TENSOR = "cloudshift:tensor"
_ARRAY = "cloudshift:array"


def pull_tensors(value: object, path: str, tensors: dict[str, torch.Tensor]) -> object:
    """Move every tensor of a tree into ``tensors`` under its path; return the tree without them.

    Args:
        value: Nested dictionaries, lists and tuples.
        path: Name of the root; parts are joined by ``/``.
        tensors: Filled: path to tensor.

    Returns:
        The same tree with a tagged tuple in the place of each tensor and each numpy array.

    Raises:
        UsageError: An array of Python objects: its bytes are addresses.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return tensor_tag(path)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise UsageError(
                f"{path} is an array of Python objects, which a checkpoint cannot hold; "
                "turn it into a list or into numbers"
            )
        return (_ARRAY, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: pull_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [pull_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def push_tensors(tree: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """Undo ``pull_tensors``."""
    if isinstance(tree, dict):
        return {key: push_tensors(item, tensors) for key, item in tree.items()}
    if isinstance(tree, list):
        return [push_tensors(item, tensors) for item in tree]
    if not isinstance(tree, tuple):
        return tree
    if len(tree) == 2 and tree[0] == _TENSOR:
        return tensors[tree[1]]
    if len(tree) == 4 and tree[0] == _ARRAY:
        _, dtype, shape, data = tree
        return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape).copy()
    return tuple(push_tensors(item, tensors) for item in tree)


def tensor_name(value: object) -> str | None:
    """The name of the tensor that stood where this tag stands; None for anything else."""
    is_tag = isinstance(value, tuple) and len(value) == 2 and value[0] == _TENSOR
    return str(value[1]) if is_tag else None  # type: ignore[index]


def tensor_tag(name: str) -> tuple[str, str]:
    """What stands in a tree for the tensor of this name."""
    return (_TENSOR, name)


def tensor_names(tree: object) -> Iterator[str]:
    """The names of all tensors that a tree refers to."""
    if (name := tensor_name(tree)) is not None:
        yield name
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensor_names(item)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensor_names(item)


def dtype_name(tensor: torch.Tensor) -> str:
    """The checkpoint format's name of a dtype: ``float32``, ``bfloat16``, ``bool``."""
    return str(tensor.dtype).removeprefix("torch.")


def to_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor of the format's ``dtype`` from the array that the reader gives for it."""
    wanted: torch.dtype = getattr(torch, dtype)
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor if tensor.dtype == wanted else tensor.view(wanted)
