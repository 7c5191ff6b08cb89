"""Bring checkpoints of other formats into a store, as a committed step of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from cloudshift_lab.checkpoint.boxes import TensorBox
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.checkpoint.seal import seal
from cloudshift_lab.checkpoint.tombs import tombstoned
from cloudshift_lab.checkpoint.write import Staged, WrittenRank, write_rank
from cloudshift_lab.core.errors import Corrupt, NotFound, Unsupported, UsageError
from cloudshift_lab.storage.store import Store, open_store
from cloudshift_lab.training.dcp_writer import names_step, step_in
from cloudshift_lab.training.flat import FlatState, KeyPath, check_lists, checked_paths
from cloudshift_lab.training.memory import Bytes, bytes_of
from cloudshift_lab.training.ownership import Ownership, new_owner
from cloudshift_lab.training.tree import dtype_name
from cloudshift_lab.training.trusted import read_item, read_metadata, require_trust
from cloudshift_lab.training.values import to_plain

Progress = Callable[[int, int], None]
_DATA_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Imported:
    """What an import made: a committed step; bytes before and after compression."""

    run_id: str
    step: int
    num_tensors: int
    raw_bytes: int
    stored_bytes: int


@dataclass
class _Part:
    """One rank's share of an import; a file of the source each."""

    boxes: list[TensorBox]
    buffers: list[Bytes]
    state: FlatState


@dataclass(frozen=True)
class _Source:
    """What is to be imported: parts that are read one at a time, and bytes in all."""

    parts: Iterable[_Part]
    num_parts: int
    num_tensors: int
    num_bytes: int


def import_dcp(
    path: Path | str, url: str, run_id: str, *, trusted: bool = False, step: int | None = None,
    store_options: Mapping[str, object] | None = None, progress: Progress | None = None,
) -> Imported:  # fmt: skip
    """Import a DCP checkpoint: tensors, their shards and every plain value.

    A DCP checkpoint is partly pickle, hence ``trusted``; still, its metadata is read with only
    DCP's own classes allowed and its items with ``weights_only``, so that nothing in it runs.

    Args:
        path: The folder with ``.metadata`` and ``*.distcp``.
        url: The store to bring it into.
        run_id: The run whose step it becomes; a new one, or one that was imported or saved by DCP.
        trusted: You know where it comes from.
        step: Its number; None: the number at the end of the folder's name, or 0.
        store_options: fsspec options of the store.
        progress: Told bytes done and bytes in all.

    Raises:
        UsageError: Not trusted, or a value that needs code to be read.
        Corrupt: Damaged, or made to do something else than to hold tensors.
        NotFound: No such checkpoint.
        Unsupported: Written with an extension (a compressing one, for example).
    """
    folder = Path(path)
    require_trust(folder, trusted=trusted, what="a DCP checkpoint, which is partly pickle")
    source = _dcp_source(folder, read_metadata(folder))
    number = step if step is not None else _number_of(folder)
    return _store(source, open_store(url, store_options or {}), run_id, number, progress)


def import_safetensors(
    path: Path | str, url: str, run_id: str, *, trusted: bool = False, step: int | None = None,
    store_options: Mapping[str, object] | None = None, progress: Progress | None = None,
) -> Imported:  # fmt: skip
    """Import a safetensors file, or all of a folder, under the names that the tensors have there.

    Args: As ``import_dcp``; ``path`` may be a file. Safetensors hold no code, but no hash either:
        ``trusted`` says that the content is what you expect.

    Raises:
        UsageError: Not trusted, or a name that two files have.
        Corrupt: Damaged.
        NotFound: No such file.
    """
    place = Path(path)
    require_trust(place, trusted=trusted, what="a safetensors checkpoint")
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if not files:
        raise NotFound(f"{place} has no *.safetensors; give a file or a folder with some")
    source = _safetensors_source(files)
    number = step if step is not None else _number_of(place)
    return _store(source, open_store(url, store_options or {}), run_id, number, progress)


def _number_of(path: Path) -> int:
    return step_in(path.name) if path.is_dir() and names_step(path.name) else 0


def _store(
    source: _Source, store: Store, run_id: str, step: int, progress: Progress | None
) -> Imported:
    """Write the parts as the ranks of a step, one in memory at a time, and commit."""
    owned = Ownership(store, run_id, new_owner(run_id))
    state = owned.hold()
    owned.check_step(state, step)
    since, dead_packs = state.next_seq, tombstoned(store)
    last = state.last_commit
    known = None
    if last is not None:
        known = KnownChunks.from_checkpoint(open_checkpoint(store, run_id, last))
    done = 0
    written: list[WrittenRank] = []
    for rank, part in enumerate(source.parts):
        staged = Staged(
            step, rank, source.num_parts, tuple(part.boxes), tuple(part.buffers),
            part.state.leaves(),
        )  # fmt: skip
        written.append(
            write_rank(
                store, run_id, staged, generation=state.generation, known=known,
                dead_packs=dead_packs, progress=_teller(progress, done, source.num_bytes),
            )
        )  # fmt: skip
        done += written[-1].raw_bytes
    sealed = seal(
        store, run_id, step, generation=state.generation, world_size=source.num_parts,
        written=written,
    )  # fmt: skip
    owned.commit(sealed, state.generation, since=since)
    owned.release()
    return Imported(run_id, step, source.num_tensors, sealed.raw_bytes, sealed.stored_bytes)


def _teller(progress: Progress | None, before: int, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(before + done, total)


# -- DCP ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """Where an item lies, checked: a plain file name, bytes within the file."""

    index: MetadataIndex
    start: int
    num_bytes: int


def _dcp_source(folder: Path, metadata: Metadata) -> _Source:
    entries = metadata.state_dict_metadata
    if not isinstance(entries, dict) or not isinstance(metadata.storage_data, dict):
        raise Corrupt(f"{folder} has metadata without items; import another copy")
    try:
        paths = checked_paths(metadata.planner_data or {})
        check_lists(paths)
    except TypeError as error:
        raise Corrupt(f"{folder} has malformed metadata ({error}); import another copy") from error
    per_file: dict[str, list[_Item]] = {}
    for index, where in metadata.storage_data.items():
        name, item = _checked(folder, index, where)
        per_file.setdefault(name, []).append(item)
    stored = {item.index.fqn for items in per_file.values() for item in items}
    empty = {n: e for n, e in entries.items() if n not in stored}
    if any(not isinstance(e, TensorStorageMetadata) or e.size.numel() for e in empty.values()):
        raise Corrupt(f"{folder} lacks the data of '{next(iter(empty))}'; import another copy")
    tensors = [e for e in entries.values() if isinstance(e, TensorStorageMetadata)]
    return _Source(
        (_dcp_part(folder, n, per_file[n], entries, paths) for n in sorted(per_file)),
        len(per_file),
        len(tensors),
        sum(e.size.numel() * e.properties.dtype.itemsize for e in tensors),
    )


def _checked(folder: Path, index: object, where: Any) -> tuple[str, _Item]:
    """One line of the storage table.

    Raises:
        Corrupt: It points outside of the folder, or outside of its file.
        Unsupported: The item went through an extension.
    """
    name, start = getattr(where, "relative_path", None), getattr(where, "offset", None)
    length = getattr(where, "length", None)
    if not isinstance(index, MetadataIndex) or not isinstance(name, str):
        raise Corrupt(f"{folder} has a storage table of another kind; import another copy")
    path = folder / name
    if not _DATA_FILE.fullmatch(name) or path.is_symlink() or not path.is_file():
        raise Corrupt(
            f"the metadata of {folder} points at '{name[:80]}', which is no file of it; "
            "import another copy"
        )
    if not isinstance(start, int) or not isinstance(length, int) or start < 0 or length < 0:
        raise Corrupt(f"'{index.fqn}' lies nowhere in {name}; import another copy")
    if start + length > path.stat().st_size:
        raise Corrupt(f"{name} is cut off before the end of '{index.fqn}'; import another copy")
    if getattr(where, "transform_descriptors", None):
        raise Unsupported(
            f"'{index.fqn}' was written with the extension {where.transform_descriptors[0]}; "
            "save it again without extensions, then import"
        )
    return name, _Item(index, start, length)


def _dcp_part(
    folder: Path, file_name: str, items: list[_Item], entries: Mapping[str, object],
    paths: Mapping[str, KeyPath],
) -> _Part:  # fmt: skip
    part = _Part([], [], FlatState())
    nested: dict[str, torch.Tensor] = {}
    with (folder / file_name).open("rb") as file:
        for item in sorted(items, key=lambda i: i.start):
            name = item.index.fqn
            file.seek(item.start)
            value = read_item(file.read(item.num_bytes), name)
            entry = entries.get(name)
            if isinstance(entry, TensorStorageMetadata):
                part.boxes.append(_dcp_box(item.index, entry, value))
                part.buffers.append(bytes_of(value, name))
            elif isinstance(entry, BytesStorageMetadata):
                part.state.values[name] = to_plain(value, name, nested)
            else:
                raise Corrupt(f"'{name}' is not in the metadata of {folder}; import another copy")
            if name in paths:
                part.state.paths[name] = paths[name]
    for name, tensor in nested.items():
        part.boxes.append(_whole_box(name, tensor))
        part.buffers.append(bytes_of(tensor, name))
    part.state = FlatState(part.state.values, part.state.paths, frozenset(nested))
    return part


def _dcp_box(index: MetadataIndex, entry: TensorStorageMetadata, tensor: object) -> TensorBox:
    """The box that a stored shard is of.

    Raises:
        Corrupt: The shard is not what the metadata says.
    """
    size = tuple(entry.size)
    offset = (0,) * len(size) if index.offset is None else tuple(index.offset)
    shapes = [tuple(c.sizes) for c in entry.chunks if tuple(c.offsets) == offset]
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) not in shapes:
        raise Corrupt(f"'{index.fqn}' at {offset} is not the shard that it should be")
    if tensor.dtype != entry.properties.dtype:
        raise Corrupt(
            f"'{index.fqn}' is stored as {tensor.dtype}, its metadata says "
            f"{entry.properties.dtype}; import another copy"
        )
    return TensorBox(index.fqn, dtype_name(tensor), size, offset, tuple(tensor.shape))


# -- safetensors ----------------------------------------------------------------------------------


def _safetensors_source(files: list[Path]) -> _Source:
    seen: dict[str, Path] = {}
    for path in files:
        for name in _names_in(path):
            if name in seen:
                raise UsageError(
                    f"both {seen[name].name} and {path.name} hold '{name}'; import one of them"
                )
            seen[name] = path
    total = sum(path.stat().st_size for path in files)
    return _Source(map(_safetensors_part, files), len(files), len(seen), total)


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise Corrupt(f"{path} is no whole safetensors file ({error}); use another copy") from error


def _safetensors_part(path: Path) -> _Part:
    part = _Part([], [], FlatState())
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(name)
                part.boxes.append(_whole_box(name, tensor))
                part.buffers.append(bytes_of(tensor, name))
                part.state.paths[name] = (name,)
    except (SafetensorError, OSError) as error:
        raise Corrupt(f"{path} is damaged ({error}); use another copy") from error
    return part


def _whole_box(name: str, tensor: torch.Tensor) -> TensorBox:
    shape = tuple(tensor.shape)
    return TensorBox(name, dtype_name(tensor), shape, (0,) * len(shape), shape)
