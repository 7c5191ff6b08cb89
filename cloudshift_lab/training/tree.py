"""State dictionaries as flat named tensors plus a tree of everything else, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch

from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES
from cloudshift_lab.core.errors import Corrupt, UsageError

_TENSOR = "cloudshift:tensor"
_ARRAY = "cloudshift:array"
_DTYPE = re.compile(r"[<>|=]?[biufcmMSUV?][0-9]{0,9}(\[[0-9A-Za-z]{1,8}\])?")
_ELSEWHERE = "use another step"


def pull_tensors(
    value: object, path: str, tensors: dict[str, torch.Tensor],
    whole: tuple[object, str] | None = None,
) -> object:  # fmt: skip
    """Move every tensor of a tree into ``tensors`` under its path; return the tree without them.

    Args:
        value: Nested dictionaries, lists and tuples.
        path: Name of the root; parts are joined by ``/``.
        tensors: Filled: path to tensor.
        whole: The tree that ``value`` is part of and that one's path, for messages.

    Returns:
        The same tree with a tagged tuple in the place of each tensor and each numpy array.

    Raises:
        UsageError: A value that would come back as something else, a tensor that a checkpoint
            cannot hold, or two tensors of one name; says where.
    """
    if isinstance(value, torch.Tensor):
        check_tensor(value, path)
        if tensors.setdefault(path, value) is not value:
            raise UsageError(_twice(path, whole or (value, path)))
        return tensor_tag(path)
    if isinstance(value, np.ndarray | np.generic):
        return _plain_numpy(value, path)
    whole = whole or (value, path)
    if isinstance(value, Mapping):
        return {k: pull_tensors(v, f"{path}/{k}", tensors, whole) for k, v in value.items()}
    if isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            raise UsageError(
                f"{path} is a {type(value).__name__}, which would come back as a plain tuple; "
                "save its _asdict()"
            )
        items = [pull_tensors(v, f"{path}/{i}", tensors, whole) for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def check_tensor(tensor: torch.Tensor, name: str) -> None:
    """Make sure that a checkpoint can hold a tensor.

    Raises:
        UsageError: It is sparse, has no data, or has a dtype that the format lacks.
    """
    what = None
    if tensor.layout is not torch.strided or tensor.is_nested:
        what = f"a {str(tensor.layout).removeprefix('torch.')} tensor; make it dense"
    elif tensor.device.type == "meta":
        what = "a tensor on the meta device, without any data; move the module with to_empty"
    elif dtype_name(tensor) not in ELEMENT_TYPES:
        what = f"a tensor of {dtype_name(tensor)}; convert it to one of {', '.join(ELEMENT_TYPES)}"
    if what is not None:
        raise UsageError(f"a checkpoint cannot hold {name}, {what}")


def _plain_numpy(value: np.ndarray | np.generic, path: str) -> object:
    kind = value.dtype.kind
    if value.dtype.hasobject:
        raise UsageError(
            f"{path} is an array of Python objects, which a checkpoint cannot hold; "
            "turn it into a list or into numbers"
        )
    is_array = isinstance(value, np.ndarray)
    if kind == "V" or isinstance(value, np.ma.MaskedArray) or (kind in "mM" and not is_array):
        raise UsageError(
            f"{path} is a {type(value).__name__} of {value.dtype}, which would come back as "
            "something else; save its numbers as plain arrays"
        )
    if not is_array:
        return value.item()
    return (_ARRAY, value.dtype.str, value.shape, value.tobytes())


def _twice(path: str, whole: tuple[object, str]) -> str:
    places = list(_places(*whole, whole[1], path)) or [path]
    return (
        f"{' and '.join(places)} would both be called '{path}' in a checkpoint; "
        "rename one of their keys"
    )


def _places(value: object, path: str, shown: str, wanted: str) -> Iterator[str]:
    """Where in a tree the tensors stand that would have one name."""
    if isinstance(value, torch.Tensor) and path == wanted:
        yield shown
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from _places(item, f"{path}/{key}", f"{shown}[{key!r}]", wanted)


def push_tensors(tree: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """Undo ``pull_tensors``.

    Raises:
        Corrupt: A tag that ``pull_tensors`` never made, or a tensor that is not there.
    """
    if isinstance(tree, dict):
        return {key: push_tensors(item, tensors) for key, item in tree.items()}
    if isinstance(tree, list):
        return [push_tensors(item, tensors) for item in tree]
    if not isinstance(tree, tuple):
        return tree
    if len(tree) == 2 and tree[0] == _TENSOR:
        if not isinstance(tree[1], str) or tree[1] not in tensors:
            raise Corrupt(f"a record names a tensor '{tree[1]}' that is not there; {_ELSEWHERE}")
        return tensors[tree[1]]
    if len(tree) == 4 and tree[0] == _ARRAY:
        return _pushed_array(*tree[1:])
    return tuple(push_tensors(item, tensors) for item in tree)


def _pushed_array(dtype: object, shape: object, data: object) -> np.ndarray:
    if not (
        isinstance(dtype, str)
        and _DTYPE.fullmatch(dtype)
        and isinstance(shape, tuple)
        and all(type(n) is int and n >= 0 for n in shape)
        and isinstance(data, bytes)
    ):
        raise Corrupt(f"a record has a malformed array; {_ELSEWHERE}")
    try:
        kind = np.dtype(dtype)
        if kind.itemsize < 1 or kind.itemsize * math.prod(shape) != len(data):
            raise ValueError(f"{len(data)} bytes are no {dtype}{list(shape)}")
        return np.ndarray(shape, kind, bytearray(data))
    except (TypeError, ValueError, OverflowError) as error:
        raise Corrupt(f"a record has a malformed array ({error}); {_ELSEWHERE}") from error


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
