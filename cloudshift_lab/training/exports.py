"""Write a stored step in formats that other programs read: DCP, safetensors, a plain state_dict."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.core.errors import CloudshiftError, Exhausted, Unsupported, UsageError
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.dcp_reader import whole_tensors
from cloudshift_lab.training.memory import bytes_of
from cloudshift_lab.training.nested import (
    StoredTensor,
    is_session,
    model_tensors,
    nested_state,
    positional,
    stored_tensors,
)

Progress = Callable[[int, int], None]
Step = int | Literal["latest"]
BATCH_BYTES = 64 * 2**20
_SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32",
    "uint16": "U16", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip


def export_state_dict(
    url: str, run_id: str, path: Path | str, *, step: Step = "latest",
    store_options: Mapping[str, object] | None = None, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write one file that torch opens with ``weights_only=True``, as it does unless told otherwise.

    Of a training session: ``{"model", "optimizer", "step"}``, as both ``load_state_dict`` take
    them. Of anything else the dictionary that was saved. Arrays of numpy become tensors. The whole
    state is in memory at once.

    Args:
        url: The store.
        run_id: Whose step.
        path: The file; it appears when it is whole.
        step: Its number, or the newest one.
        store_options: fsspec options of the store.
        progress: Told bytes done and bytes in all; may raise to stop.

    Returns:
        Bytes of the file.

    Raises:
        UsageError: The file exists, or its folder does not.
        NotFound, Corrupt: As the reader reported.
        Exhausted: No space for the file.
    """
    checkpoint = _open(url, run_id, step, store_options)
    state = nested_state(checkpoint)
    if is_session(checkpoint):
        state["optimizer"] = positional(state["optimizer"])
    names = list(dict.fromkeys(tensor.name for tensor in stored_tensors(state)))
    tensors = dict(_streamed(checkpoint, names, progress))
    return _appear(Path(path), lambda file: torch.save(_filled(state, tensors), file))


def export_safetensors(
    url: str, run_id: str, path: Path | str, *, step: Step = "latest",
    store_options: Mapping[str, object] | None = None, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write the model as one safetensors file, in bounded memory.

    Of a training session, and of anything with a part called ``model``, that part's tensors under
    the names of its ``state_dict``, tied ones under each of their names; of anything else every
    tensor under its flat name.

    Args: As ``export_state_dict``.

    Raises: As ``export_state_dict``; and Unsupported for complex128, which safetensors lack.
    """
    checkpoint = _open(url, run_id, step, store_options)
    wanted = model_tensors(checkpoint)
    header, order = _header(checkpoint, wanted)

    def write(file: Path) -> None:
        with file.open("wb") as out:
            out.write(header)
            for name, tensor in _streamed(checkpoint, [wanted[n] for n in order], progress):
                out.write(bytes_of(tensor, name).data)

    return _appear(Path(path), write)


def export_dcp(
    url: str, run_id: str, path: Path | str, *, step: Step = "latest",
    store_options: Mapping[str, object] | None = None, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write a DCP checkpoint, in bounded memory, that ``dcp.load`` reads at any world size.

    Of a training session ``model`` and ``optimizer`` with the names of the parameters, as
    ``get_state_dict`` gives them; of anything else the keys that were saved.

    Args: As ``export_state_dict``; ``path`` is a folder that must not exist or be empty.

    Raises: As ``export_state_dict``.
    """
    checkpoint = _open(url, run_id, step, store_options)
    planner = _StoredPlanner(checkpoint, progress)
    state = _filled(nested_state(checkpoint), planner)
    folder = Path(path)
    _check_new(folder)
    is_whole = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that there is one process only
            writer = FileSystemWriter(folder, overwrite=False)
            save_dcp(state, storage_writer=writer, planner=planner, no_dist=True)
        is_whole = True
    except dcp.api.CheckpointException as failure:
        raise _explained(failure) from failure
    finally:
        if not is_whole:
            shutil.rmtree(folder, ignore_errors=True)
    return sum(file.stat().st_size for file in folder.iterdir())


def _open(
    url: str, run_id: str, step: Step, store_options: Mapping[str, object] | None
) -> Checkpoint:
    return open_run(open_store(url, store_options or {}), run_id, step)


class _StoredPlanner(DefaultSavePlanner):
    """Plans over tensors without memory, and fetches each batch when its first item is written."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._progress = progress
        self._names: dict[int, str] = {}
        self._held: list[torch.Tensor] = []
        self._stream: Iterator[tuple[str, torch.Tensor]] = iter(())

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor without memory in the place of a stored one."""
        spec = self._checkpoint.spec(name)
        kind: torch.dtype = getattr(torch, spec.dtype)
        empty = torch.empty(spec.global_shape, dtype=kind, device="meta")
        self._names[id(empty)] = name
        self._held.append(empty)
        return empty

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Begin to fetch in the order in which the items are written."""
        plan = super().finish_plan(new_plan)
        items = [item for item in plan.items if item.type is not WriteItemType.BYTE_IO]
        names = [self._names[id(self.lookup_object(item.index))] for item in items]
        self._stream = _streamed(self._checkpoint, names, self._progress)
        return plan

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002 - DCP's name
        """The stored content of an item."""
        if write_item.type is WriteItemType.BYTE_IO:
            return super().transform_object(write_item, object)
        name, tensor = next(self._stream)
        assert name == self._names[id(object)], "DCP writes the items of a plan in order"
        return tensor


def _streamed(
    checkpoint: Checkpoint, names: Sequence[str], progress: Progress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in the order asked, fetched in batches of some tens of megabytes."""
    sizes = [_num_bytes(checkpoint, name) for name in names]
    total, done, first = sum(sizes), 0, 0
    while first < len(names):
        last, batch = first + 1, sizes[first]
        while last < len(names) and batch + sizes[last] <= BATCH_BYTES:
            batch += sizes[last]
            last += 1
        found = whole_tensors(checkpoint, list(dict.fromkeys(names[first:last])))
        done += batch
        if progress is not None:
            progress(done, total)
        yield from ((name, found[name]) for name in names[first:last])
        first = last


def _num_bytes(checkpoint: Checkpoint, name: str) -> int:
    spec = checkpoint.spec(name)
    kind: torch.dtype = getattr(torch, spec.dtype)
    return torch.Size(spec.global_shape).numel() * kind.itemsize


def _filled(value: Any, tensors: Mapping[str, torch.Tensor] | _StoredPlanner) -> Any:
    """The tree with real tensors in the place of stored ones."""
    if isinstance(value, StoredTensor):
        return tensors[value.name]
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_filled(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _header(checkpoint: Checkpoint, wanted: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """A safetensors header and the order of the data: the widest elements first, for alignment."""
    specs = {name: checkpoint.spec(stored) for name, stored in wanted.items()}
    for name, spec in specs.items():
        if spec.dtype not in _SAFETENSORS:
            raise Unsupported(
                f"'{name}' is {spec.dtype}, which safetensors lack; export to dcp or state_dict"
            )
    order = sorted(specs, key=lambda n: (-getattr(torch, specs[n].dtype).itemsize, n))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + _num_bytes(checkpoint, wanted[name])
        entries[name] = {
            "dtype": _SAFETENSORS[specs[name].dtype],
            "shape": list(specs[name].global_shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _check_new(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} exists already; choose another place")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}; make it first")


def _appear(path: Path, write: Callable[[Path], None]) -> int:
    """Write a file beside its place and move it there when it is whole."""
    if path.exists():
        raise UsageError(f"{path} exists already; choose another place")
    _check_new(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise Exhausted(
            f"{path} cannot be written ({error}); free space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def _explained(failure: dcp.api.CheckpointException) -> CloudshiftError:
    """What DCP wrapped."""
    error = next(iter(failure.failures.values()))[0]
    if isinstance(error, CloudshiftError):
        return error
    return Exhausted(f"the DCP checkpoint cannot be written ({error}); choose another place")
