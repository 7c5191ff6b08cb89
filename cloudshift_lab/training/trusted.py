"""The only module that reads pickled input: DCP checkpoints that a person said to trust.

Even so nothing in them may run: the metadata is unpickled with a handful of classes allowed, the
items with torch's ``weights_only``. Our stores hold no pickle, and no other module may read one.
"""

from __future__ import annotations

import io
import pathlib
import pickle  # noqa: TID251 - DCP's metadata is a pickle; only the classes below can be made of it
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata

from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError

METADATA_FILE = ".metadata"
_MAX_METADATA_BYTES = 2**31
_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES: dict[tuple[str, str], type] = {
    (_METADATA, "Metadata"): metadata.Metadata,
    (_METADATA, "MetadataIndex"): metadata.MetadataIndex,
    (_METADATA, "StorageMeta"): metadata.StorageMeta,
    (_METADATA, "TensorStorageMetadata"): metadata.TensorStorageMetadata,
    (_METADATA, "BytesStorageMetadata"): metadata.BytesStorageMetadata,
    (_METADATA, "ChunkStorageMetadata"): metadata.ChunkStorageMetadata,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    (_METADATA, "_MEM_FORMAT_ENCODING"): int,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError,
    ValueError, RuntimeError, OverflowError, MemoryError,
)  # fmt: skip


class _Properties(metadata.TensorProperties):
    """As DCP's, from a pickle in which the memory format is a number."""

    def __setstate__(self, state: Any) -> None:
        dtype, layout, requires_grad, encoding, pin_memory = state
        shown = metadata._MEM_FORMAT_ENCODING(encoding)
        super().__setstate__((dtype, layout, requires_grad, shown, pin_memory))  # type: ignore[no-untyped-call]


class _OnlyMetadata(pickle.Unpickler):
    """An unpickler that makes nothing but the classes of DCP's metadata.

    A pickle may set attributes of whatever it names, so it is given subclasses and functions that
    are its own; nothing that it does outlives it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._given: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in self._given:
            self._given[module, name] = _made_for_once(module, name)
        return self._given[module, name]


def _made_for_once(module: str, name: str) -> Any:
    key = module, name
    if key in _FUNCTIONS:
        return partial(_FUNCTIONS[key])
    base = _CLASSES.get(key)
    if module.startswith("pathlib") and name in _PATHS:
        base = pathlib.PurePosixPath
    elif key == (_METADATA, "TensorProperties"):
        base = _Properties
    if base is None:
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which no metadata needs")
    return type(base.__name__, (base,), {})


def require_trust(path: Path, *, trusted: bool, what: str) -> None:
    """Refuse to read something nobody vouched for.

    Raises:
        UsageError: It is not trusted.
    """
    if not trusted:
        raise UsageError(
            f"{path} is {what}, and nothing proves what it holds; if you know where it comes from, "
            "import it with trusted=True (--trust)"
        )


def read_metadata(folder: Path) -> Metadata:
    """DCP's ``.metadata`` of a trusted checkpoint.

    Raises:
        NotFound: There is none.
        Corrupt: It is no such metadata, or a pickle that wants to make something else.
    """
    path = folder / METADATA_FILE
    if not path.is_file() or path.stat().st_size > _MAX_METADATA_BYTES:
        raise NotFound(f"{folder} has no {METADATA_FILE}; give the folder of a DCP checkpoint")
    try:
        with path.open("rb") as file:
            found = _OnlyMetadata(file).load()
    except _UNREADABLE as error:
        raise Corrupt(
            f"{path} cannot be imported: {_first_line(error)}; use another copy"
        ) from error
    if not isinstance(found, Metadata):
        raise Corrupt(f"{path} is not DCP's metadata; use another copy")
    return found


def read_item(data: bytes | IO[bytes], name: str) -> Any:
    """One stored item of a trusted checkpoint: a tensor, or a plain value.

    Raises:
        Corrupt: It is damaged.
        UsageError: It is a Python object of a class that cannot be imported.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)  # noqa: TID251 - see above
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"'{name}' is pickled Python and needs code to be read ({_first_line(error)}); "
            "save it as numbers, strings, lists and dictionaries, then import again"
        ) from error
    except _UNREADABLE as error:
        raise Corrupt(
            f"'{name}' is damaged ({_first_line(error)}); import another copy of the checkpoint"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
