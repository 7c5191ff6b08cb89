"""The only module that reads pickled input: DCP checkpoints that a person said to trust.

Even so nothing in them may run: the metadata is unpickled with a handful of classes allowed, the
items with torch's ``weights_only``. Our stores hold no pickle, and no other module may read one.
"""

from __future__ import annotations

import io
import pathlib
import pickle  # noqa: TID251 - DCP's metadata is a pickle; only the classes below can be made of it
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError

METADATA_FILE = ".metadata"
_MAX_METADATA_BYTES = 2**31
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError,
    ValueError, RuntimeError, OverflowError, MemoryError,
)  # fmt: skip


class _OnlyMetadata(pickle.Unpickler):
    """An unpickler that makes nothing but the classes of DCP's metadata."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib") and name in _PATHS:
            return pathlib.PurePosixPath
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no metadata needs")
        return super().find_class(module, name)


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
